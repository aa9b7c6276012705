"""`forward` against itself: with and without cache, padding, rematerialisation; and what compiling it costs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models
from opd_jax.errors import InputError
from opd_jax.models.cache import Cache

FIELDS = dict(
  model_type="qwen3",
  vocab_size=97,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  initializer_range=0.25,
)


def architecture(**fields) -> models.Architecture:
  return models.Architecture.from_config({**FIELDS, **fields}, "test")


@pytest.fixture(scope="module")
def model() -> models.Model:
  return models.initialize(architecture(), jax.random.key(1), jnp.float32)


def every_key(b: int, t: int) -> jax.Array:
  return jnp.ones((b, t), bool)


@jax.jit
def full(model: models.Model, tokens_bt):
  b, t = tokens_bt.shape
  return models.forward(model, tokens_bt, jnp.tile(jnp.arange(t), (b, 1)), every_key(b, t))[0]


@partial(jax.jit, static_argnames=("prompt", "width"))
def prefill_and_decode(model, tokens_bt, pad_b, prompt: int, width: int):
  """Hidden states of every position: `prompt` of them from one prefill, the rest one token at a time.

  Rows are left-padded by `pad_b`; prefill attends `prompt` slots only, decode all `width` of them.
  """
  b, t = tokens_bt.shape
  positions_bt = jnp.arange(t) - pad_b[:, None]
  real_bs = jnp.arange(width) >= pad_b[:, None]
  cache = Cache.empty(model.config, b, width, jnp.float32)
  hidden_bpd, cache = models.forward(model, tokens_bt[:, :prompt], positions_bt[:, :prompt], real_bs[:, :prompt], cache)

  def step(cache, slot):
    token, position = tokens_bt[:, slot][:, None], positions_bt[:, slot][:, None]
    seen = real_bs & (jnp.arange(width) <= slot)
    hidden, cache = models.forward(model, token, position, seen, cache, slot)
    return cache, hidden[:, 0]

  _, hidden_tbd = jax.lax.scan(step, cache, jnp.arange(prompt, t))
  return jnp.concatenate([hidden_bpd, hidden_tbd.swapaxes(0, 1)], axis=1)


@pytest.mark.parametrize("width", [24, 40])
def test_left_padded_decode_equals_a_full_forward_of_each_row(model, width):
  rng = np.random.default_rng(0)
  pads = np.array([0, 3, 7, 10])  # the last row's prompt is a single token
  tokens = rng.integers(0, 97, (4, 24))
  hidden = prefill_and_decode(model, tokens, pads, prompt=11, width=width)
  for row, pad in enumerate(pads):
    # The same tokens without padding, moved to the front: causal, so what follows them does not matter.
    alone = full(model, np.roll(tokens[row : row + 1], -pad, axis=1))[0, : 24 - pad]
    np.testing.assert_allclose(hidden[row, pad:], alone, atol=1e-5, rtol=0)


def test_padding_tokens_and_unwritten_slots_do_not_matter(model):
  tokens, pads = np.random.default_rng(0).integers(0, 97, (2, 20)), np.array([4, 6])
  other = np.where(np.arange(20) < pads[:, None], 5, tokens)
  run = partial(prefill_and_decode, model, pad_b=pads, prompt=9, width=32)
  first, second = run(tokens), run(other)
  for row, pad in enumerate(pads):
    np.testing.assert_array_equal(first[row, pad:], second[row, pad:])


def test_rows_without_any_allowed_key_stay_finite_with_their_gradients(model):
  mask = every_key(2, 6).at[0].set(False)

  @jax.jit
  @jax.value_and_grad
  def loss(model):
    hidden, _ = models.forward(model, jnp.ones((2, 6), int), jnp.zeros((2, 6), int), mask)
    return jnp.sum(jnp.square(hidden))

  value, gradient = loss(model)
  assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_remat_changes_neither_value_nor_gradient_and_holds_less(model):
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, 64)))

  def loss(model, remat):
    positions = jnp.tile(jnp.arange(64), (2, 1))
    return jnp.mean(jnp.square(models.forward(model, tokens, positions, every_key(2, 64), remat=remat)[0][..., 0]))

  compiled = {r: jax.jit(jax.value_and_grad(partial(loss, remat=r))).lower(model).compile() for r in (False, True)}
  (value, gradient), (again, gradient_again) = compiled[False](model), compiled[True](model)
  np.testing.assert_allclose(value, again, rtol=1e-6)
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), gradient, gradient_again)
  held = {r: c.memory_analysis().temp_size_in_bytes for r, c in compiled.items()}
  assert held[True] < held[False]


def test_program_size_does_not_grow_with_depth():
  def operations(layers: int) -> list[int]:
    config = architecture(num_hidden_layers=layers)
    model = jax.eval_shape(lambda: models.initialize(config, jax.random.key(0), jnp.float32))
    tokens, mask = jnp.zeros((1, 8), int), every_key(1, 8)

    def decode(model):
      return models.forward(model, tokens, tokens, mask, Cache.empty(config, 1, 16, jnp.float32))

    def loss(model):
      return jnp.sum(models.forward(model, tokens, tokens, mask, remat=True)[0])

    decoding, training = jax.jit(decode).lower(model), jax.jit(jax.grad(loss)).lower(model)
    return [len(program.as_text().splitlines()) for program in (decoding, training, decoding.compile())]

  (*lowered_2, compiled_2), (*lowered_8, compiled_8) = operations(2), operations(8)
  assert lowered_2 == lowered_8
  assert abs(compiled_8 - compiled_2) < 0.05 * compiled_2  # XLA may drop or keep a copy


def test_decode_holds_one_cache_and_updates_it_in_place(model):
  """Two caches' worth of temporaries would mean that a layer or a step copies what it should update."""
  b, width = 4, 512
  cache = jax.eval_shape(lambda: Cache.empty(model.config, b, width, jnp.float32))

  def decode(model, cache, limit):
    def step(carry):
      slot, cache, total = carry
      tokens, mask = jnp.ones((b, 1), int), jnp.broadcast_to(jnp.arange(width) <= slot, (b, width))
      hidden, cache = models.forward(model, tokens, jnp.full((b, 1), slot), mask, cache, slot)
      return slot + 1, cache, total + jnp.sum(hidden)

    return jax.lax.while_loop(lambda carry: carry[0] < limit, step, (0, cache, jnp.float32(0)))

  memory = jax.jit(decode, donate_argnums=1).lower(model, cache, 7).compile().memory_analysis()
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
  assert memory.alias_size_in_bytes >= size
  assert memory.temp_size_in_bytes < size  # one layer's slice and its transpose, not the stack


def test_grouped_heads_read_their_own_key_value_head(model):
  """Repeating each key-value head G times in the weights of an ungrouped model must change nothing."""
  attention = model.params["layers"]["attention"]
  repeated = {name: jnp.repeat(attention[name], 2, axis=1) for name in ("key_khd", "value_khd")}
  layers = {**model.params["layers"], "attention": {**attention, **repeated}}
  ungrouped = models.Model({**model.params, "layers": layers}, architecture(num_key_value_heads=4))
  tokens = np.arange(20)[None]
  np.testing.assert_allclose(models.logits(ungrouped, tokens), models.logits(model, tokens), atol=1e-5)


def test_masks_that_do_not_fit_are_refused(model):
  tokens = jnp.zeros((2, 4), int)
  cache = Cache.empty(model.config, 2, 8, jnp.float32)
  for mask, with_cache in [((2, 3), None), ((2, 5), None), ((3, 4), None), ((2, 3), cache), ((2, 9), cache)]:
    with pytest.raises(ValueError, match="does not fit"):
      models.forward(model, tokens, tokens, jnp.ones(mask, bool), with_cache)


@pytest.mark.parametrize("tokens", [[[1, 2], [3]], [1, 2, 3], [[]], [[0.5]], [[97]], [[-1]]])
def test_logits_refuses_what_is_no_batch_of_tokens(model, tokens):
  with pytest.raises(InputError, match="logits"):
    models.logits(model, tokens)


def test_initialisation_follows_the_declarations():
  model = models.initialize(architecture(attention_bias=True, num_hidden_layers=2), jax.random.key(0), jnp.bfloat16)
  table = models.parameter_table(model.config)
  for path, parameter in table.items():
    array = model.params
    for part in path:
      array = array[part]
    assert (array.shape, array.dtype) == (parameter.shape, jnp.bfloat16)
    values = np.asarray(array, np.float32)
    if "norm" in "".join(path):
      assert (values == 1).all()
    elif "bias" in path[-1]:
      assert (values == 0).all()
    else:
      assert abs(values.std() - 0.25) < 0.05
      assert not parameter.stacked or not np.array_equal(values[0], values[1])
