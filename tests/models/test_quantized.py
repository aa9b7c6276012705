"""Layers in int8: the integers against float64 rounding, what they do to the logits, and what they cost in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from qwix import QArray

from opd_jax import models
from opd_jax.distributed import DECODING, make_mesh
from opd_jax.rollout.layout import decode_layout
from opd_jax.scoring import score

# Which axes of a layer's weight are summed over in its product: the other axes tell its output channels apart.
SUMMED = {
  ("attention", "query_nhd"): (2,),
  ("attention", "key_khd"): (2,),
  ("attention", "value_khd"): (2,),
  ("attention", "output_dnh"): (1, 2),
  ("mlp", "gate_fd"): (1,),
  ("mlp", "up_fd"): (1,),
  ("mlp", "down_df"): (1,),
}


def small_model(dtype, mesh=None, layers=3):
  fields = {"model_type": "qwen2", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
  heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": layers}
  config = models.Architecture.from_config({**fields, **heads, "initializer_range": 0.1}, "test")
  return models.initialize(config, jax.random.key(0), dtype, mesh)


def flat(model):
  return traverse_util.flatten_dict(model.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(dtype):
  model = small_model(dtype)
  full, found = flat(model), flat(jax.jit(models.quantize)(model))
  assert {path[1:] for path, x in found.items() if isinstance(x, QArray)} == set(SUMMED)
  for path, x in found.items():
    if not isinstance(x, QArray):
      np.testing.assert_array_equal(x, full[path])  # embedding, norms, biases
      continue
    assert x.qvalue.dtype == jnp.int8 and x.scale.dtype == jnp.float32
    exact = np.asarray(full[path], np.float64)
    for layer in range(3):
      largest = np.abs(exact[layer]).max(axis=SUMMED[path[1:]], keepdims=True)
      step = largest / 127.5  # so that 127 and its half step on either side reach as far as the largest weight
      np.testing.assert_allclose(x.scale[layer], step, rtol=1e-6)
      ratio = exact[layer] / step
      q = np.asarray(x.qvalue[layer], np.float64)
      # Half a step at most, and a little for float32; where the nearest integer is not a close call, it is that.
      assert np.abs(q - ratio).max() <= 0.5 + 1e-4
      clear = np.abs(ratio - np.round(ratio)) < 0.499
      np.testing.assert_array_equal(q[clear], np.round(ratio)[clear])


def test_logits_are_those_of_the_rounded_weights_and_near_the_full_ones():
  model = small_model("float32")
  tokens = np.random.default_rng(0).integers(0, 97, (2, 12))
  quantized = jax.jit(models.quantize)(model)
  rounded = {path: x.qvalue * x.scale if isinstance(x, QArray) else x for path, x in flat(quantized).items()}
  expected = models.logits(models.Model(traverse_util.unflatten_dict(rounded), model.config), tokens)
  np.testing.assert_allclose(models.logits(quantized, tokens), expected, atol=1e-4)
  # An error even on [-step / 2, step / 2] has a deviation of step / sqrt(12). Of 64 to 96 normal weights of a channel
  # the largest is about 2.5 sigma, so step = 2.5 sigma / 127.5, and a product is off by 2.5 / 127.5 / sqrt(12) = 0.6 %
  # of its size. 21 products in three layers, independent of each other, make 2.6 %; the bound leaves twice that, for
  # softmax and gates, which may enlarge what they get.
  full = models.logits(model, tokens)
  off = float(jnp.std(expected - full) / jnp.std(full))
  assert 0.002 < off < 0.05


def test_a_mesh_holds_the_same_integers_where_the_full_weights_were():
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])
  model, tokens = small_model("float32"), np.arange(24).reshape(4, 6)
  spread = small_model("float32", mesh)
  places = {path: x.sharding for path, x in flat(spread).items()}
  found, expected = models.quantize_and_free(spread), jax.jit(models.quantize)(model)
  for (path, x), y in zip(flat(found).items(), flat(expected).values(), strict=True):
    if not isinstance(x, QArray):
      assert x.sharding == places[path]
      continue
    np.testing.assert_array_equal(x.qvalue, y.qvalue)
    np.testing.assert_array_equal(x.scale, y.scale)
    assert x.qvalue.sharding.is_equivalent_to(places[path], x.ndim)
    for axis, size in enumerate(x.scale.shape):  # a scale lies beside its channels
      assert x.scale.sharding.shard_shape(x.scale.shape)[axis] in (size, x.qvalue.sharding.shard_shape(x.shape)[axis])
  assert all(flat(spread)[path].is_deleted() == isinstance(x, QArray) for path, x in flat(found).items())
  with jax.set_mesh(mesh):
    ours = models.logits(found, tokens)
    moved = jax.jit(lambda m: decode_layout(m, bucket=0, dtype=jnp.bfloat16))(found)
  np.testing.assert_allclose(ours, models.logits(expected, tokens), atol=1e-4)
  gate = moved.params["layers"]["mlp"]["gate_fd"]
  assert gate.qvalue.dtype == jnp.int8 and moved.head_vd.dtype == jnp.bfloat16
  assert gate.qvalue.sharding.is_equivalent_to(
    jax.sharding.NamedSharding(mesh, models.specs(model.config, mesh, DECODING)["layers"]["mlp"]["gate_fd"]), 3
  )


def test_one_layer_at_a_time_is_made_into_full_precision():
  """Compiled, not run: all layers in float32 would be in the temporaries."""
  quantized = jax.eval_shape(lambda: models.quantize(small_model("float32", layers=24)))
  whole = sum(4 * x.qvalue.size for x in flat(quantized).values() if isinstance(x, QArray))
  prompts, mask = jnp.zeros((1, 4), int), jnp.ones((1, 4), bool)
  memory = jax.jit(score).lower(quantized, prompts, mask, prompts, mask).compile().memory_analysis()
  assert memory.argument_size_in_bytes < 0.3 * whole
  assert memory.temp_size_in_bytes < whole / 4
