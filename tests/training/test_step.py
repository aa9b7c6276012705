"""One update: its loss and gradient against a dense definition, and against itself cut another way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opd_jax import models
from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.objectives import TokenWeights, make_objective
from opd_jax.rollout import Rollout
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, TrainState, learning_rate, make_optimizer
from opd_jax.training.step import update

VOCAB, B, P, S = 40, 8, 6, 5
END = 3  # the id that ends a row


def small_model(width, seed, vocab=VOCAB):
  config = {
    "model_type": "qwen2",
    "vocab_size": vocab,
    "hidden_size": width,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": seed % 2 == 0,
    "initializer_range": 0.1,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(seed), "float32")


@pytest.fixture(scope="module")
def pair():
  return small_model(32, 0), small_model(64, 1, vocab=VOCAB + 8)  # the teacher wider, its vocabulary padded


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  prompt_lengths, lengths = rng.integers(1, P + 1, B), rng.integers(1, S + 1, B)
  tokens_bs = rng.integers(0, VOCAB, (B, P + S))
  tokens_bs[np.arange(B), P + lengths - 1] = END  # every row ends by itself
  return Rollout(
    tokens_bs=jnp.asarray(tokens_bs, jnp.int32),
    prompt_mask_bp=jnp.asarray(np.arange(P) >= P - prompt_lengths[:, None]),
    completion_mask_bs=jnp.asarray(np.arange(S) < lengths[:, None]),
    truncated_b=jnp.asarray(lengths == S),
    behaviour_logprob_bs=jnp.zeros((B, S)),
  )


# An "optimizer" that leaves the weights alone and keeps the gradient as its state, for us to read.
KEEP = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


def step(pair, batch, *, kind="reverse_kl", micro_batches=1, remat=False, temperature=1.0, dtype=jnp.float32):
  student, teacher = pair
  objective = {"kind": kind, "beta": 0.3, "temperature": temperature}
  run = functools.partial(
    update,
    bucket=batch.completion_mask_bs.shape[1],
    objective=make_objective(from_config_dict({"objective": objective}, check=False).objective, VOCAB),
    token_weights=TokenWeights(),
    eos_ids=(END,),
    optimizer=KEEP,
    dtype=dtype,
    micro_batches=micro_batches,
    remat=remat,
    teacher_dtype=dtype,
    ema=0.0,
    skip_above=0.0,
    compare_decoding=True,
  )
  state = TrainState(student, KEEP.init(student.params), jnp.int32(0))
  state, metrics = jax.jit(run)(state, Frozen(teacher), Batch(batch))
  return state.opt_state, {name: metric.to_float() for name, metric in metrics.items()}


def assert_close(a, b, tolerance):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance * scale)


def dense_loss(params, pair, batch, kind):
  """The definition, row by row, over whole [T, V] logits and without any padding."""
  rows = batch.tokens_bs.shape[0]
  student, teacher = dataclasses.replace(pair[0], params=params), pair[1]
  total, count = 0.0, 0
  for r in range(rows):
    prompt = batch.prompts_bp[r][batch.prompt_mask_bp[r]]
    completion = batch.completions_bs[r][batch.completion_mask_bs[r]]
    tokens = jnp.concatenate([prompt, completion])[None]
    window = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
    logp, logq = (jax.nn.log_softmax(models.logits(m, tokens)[0, window, :VOCAB], axis=-1) for m in (student, teacher))
    if kind == "reverse_kl":
      total += jnp.sum(jnp.exp(logp) * (logp - logq))
    elif kind == "forward_kl":
      total += jnp.sum(jnp.exp(logq) * (logq - logp))
    elif kind == "jsd":
      logm = jnp.log(0.3 * jnp.exp(logq) + 0.7 * jnp.exp(logp))
      total += jnp.sum(0.3 * jnp.exp(logq) * (logq - logm) + 0.7 * jnp.exp(logp) * (logp - logm))
    else:  # a policy gradient: its surrogate has the right gradient, its value is the log-ratio
      logp, logq = (x[jnp.arange(len(completion)), completion] for x in (logp, logq))
      advantage = jax.lax.stop_gradient(logq - logp)
      total += jnp.sum(jax.lax.stop_gradient(logp - logq) - advantage * (logp - jax.lax.stop_gradient(logp)))
    count += len(completion)
  return total / count


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd", "sampled"])
def test_loss_and_gradient_are_those_of_the_definition(pair, batch, kind, monkeypatch):
  few = jax.tree.map(lambda x: x[:3], batch)
  gradient, metrics = step(pair, few, kind=kind)

  def differentiable_logits(model, tokens):
    length = tokens.shape[1]
    hidden, _ = models.forward(model, tokens, jnp.arange(length)[None], jnp.ones((1, length), bool))
    return hidden @ model.head_vd.T

  monkeypatch.setattr(models, "logits", differentiable_logits)
  loss, expected = jax.value_and_grad(dense_loss)(pair[0].params, pair, few, kind)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  assert_close(gradient, expected, 1e-5)


@pytest.mark.parametrize("kind", ["reverse_kl", "sampled"])
def test_micro_batches_change_nothing(pair, batch, kind):
  whole, metrics = step(pair, batch, kind=kind)
  for parts in (2, 4, 8):
    gradient, parted = step(pair, batch, kind=kind, micro_batches=parts)
    assert_close(gradient, whole, 1e-6)
    for name in metrics:
      np.testing.assert_allclose(parted[name], metrics[name], rtol=1e-5)


def test_padding_and_row_order_change_nothing(pair, batch):
  whole, metrics = step(pair, batch)
  widened = Rollout(
    tokens_bs=jnp.concatenate(
      [jnp.full((B, 3), 7), batch.prompts_bp, batch.completions_bs, jnp.full((B, 4), 9)], axis=1
    ).astype(jnp.int32),
    prompt_mask_bp=jnp.pad(batch.prompt_mask_bp, ((0, 0), (3, 0))),
    completion_mask_bs=jnp.pad(batch.completion_mask_bs, ((0, 0), (0, 4))),
    truncated_b=batch.truncated_b,
    behaviour_logprob_bs=jnp.pad(batch.behaviour_logprob_bs, ((0, 0), (0, 4))),
  )
  reordered = jax.tree.map(lambda x: x[::-1], batch)
  real_bs = jnp.concatenate([batch.prompt_mask_bp, batch.completion_mask_bs], axis=1)
  filled = dataclasses.replace(batch, tokens_bs=jnp.where(real_bs, batch.tokens_bs, END))  # pad = eos
  for other in (widened, reordered, filled):
    gradient, same = step(pair, other)
    assert_close(gradient, whole, 1e-6)
    np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-6)
    assert same["tokens"] == metrics["tokens"] == float(batch.completion_mask_bs.sum())


def test_teacher_equal_to_student_gives_no_loss_and_no_gradient(pair, batch):
  for temperature in (0.7, 1.0, 2.0):
    gradient, metrics = step((pair[0], pair[0]), batch, temperature=temperature)
    assert abs(metrics["loss"]) < 1e-6
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-6


def test_remat_changes_nothing(pair, batch):
  assert_close(step(pair, batch, remat=True)[0], step(pair, batch)[0], 1e-6)


def test_bf16_computation_keeps_float32_masters_and_a_near_gradient(pair, batch):
  """bf16 has 8 bits: each rounding is up to 0.4 %, and some tens of them follow one another here."""
  exact, metrics = step(pair, batch)
  near, same = step((pair[0], pair[1].astype(jnp.bfloat16)), batch, dtype=jnp.bfloat16)
  assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(near))
  dot = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(near), jax.tree.leaves(exact)))
  cosine = dot / float(optax.tree.norm(near) * optax.tree.norm(exact))
  assert cosine > 0.99
  np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=0.05)


def test_eight_devices_compute_the_step_of_one(pair, batch):
  """The same arrays on a (2, 2, 2) mesh: the partitioner and the pinned shardings change no number."""
  expected, metrics = step(pair, batch)
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])
  with jax.set_mesh(mesh):
    gradient, same = step(pair, batch)
  np.testing.assert_allclose(same["loss"], metrics["loss"], rtol=1e-5)
  assert_close(gradient, expected, 1e-5)


def config(**optimizer):
  return from_config_dict({"steps": 10, "optimizer": optimizer}, check=False)


def test_learning_rate_schedules():
  warm = learning_rate(config(learning_rate=0.4, warmup_steps=4).optimizer, 10)
  assert [round(float(warm(k)), 6) for k in range(6)] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
  linear = learning_rate(config(learning_rate=0.5, schedule="linear").optimizer, 5)
  assert [round(float(linear(k)), 6) for k in range(6)] == [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
  cosine = learning_rate(config(learning_rate=1.0, schedule="cosine", warmup_steps=2).optimizer, 10)
  np.testing.assert_allclose(cosine(6), 0.5 * (1 + np.cos(np.pi * 4 / 8)), rtol=1e-6)


def test_weight_decay_spares_norms_and_biases_and_clipping_bounds_the_step(pair):
  params = pair[0].params
  zero = jax.tree.map(jnp.zeros_like, params)
  decay = make_optimizer(config(learning_rate=1.0, weight_decay=0.1))
  updates, _ = decay.update(zero, decay.init(params), params)
  decayed = {jax.tree_util.keystr(path) for path, u in jax.tree_util.tree_leaves_with_path(updates) if jnp.any(u != 0)}
  assert decayed and not any("norm" in name or "bias" in name for name in decayed)
  assert any("embed_vd" in name for name in decayed) and any("down_df" in name for name in decayed)
