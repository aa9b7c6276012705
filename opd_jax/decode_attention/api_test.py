"""Which form runs, and XLA's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.decode_attention import attend
from opd_jax.distributed import make_mesh

H100 = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")  # whose kernel is lowered without one


def shapes(width=128, heads=4, queries=1, dtype=jnp.bfloat16):
  stack = (2, 8, heads)
  arrays = ((8, queries, 2 * heads, width), dtype), ((*stack, width, 256), dtype), ((*stack, 256, width), dtype)
  return tuple(jax.ShapeDtypeStruct(*array) for array in (*arrays, ((), jnp.int32), ((8, 256), bool), ((), jnp.int32)))


def lowered(platform: str, **sizes) -> str:
  call = jax.jit(partial(attend, stages=(128,)))
  return call.trace(*shapes(**sizes)).lower(lowering_platforms=(platform,)).as_text()


def kernels(text: str) -> tuple[bool, bool]:
  return "tpu_custom_call" in text, "gpu.triton" in text


def test_auto_is_the_kernel_of_the_platform_that_is_lowered_for():
  assert kernels(lowered("tpu")) == (True, False)
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=H100)):
    assert kernels(lowered("cuda")) == (False, True)
  assert kernels(lowered("cpu")) == (False, False)
  with jax.set_mesh(make_mesh((2, 1, 4), jax.devices()[:8])):
    assert kernels(lowered("tpu")) == (True, False)


@pytest.mark.parametrize(
  ("sizes", "platform"),
  [
    (dict(width=64), "tpu"),
    (dict(width=96), "cuda"),
    (dict(queries=2), "tpu"),
    (dict(queries=2), "cuda"),
    (dict(dtype=jnp.float16), "tpu"),
  ],
)
def test_auto_is_xla_where_the_kernel_lacks_the_shapes(sizes, platform):
  text = lowered(platform, **sizes)
  assert kernels(text) == (False, False)
  assert "stablehlo.case" in text  # in stages


def test_heads_that_tensor_does_not_divide_are_left_to_xla():
  with jax.set_mesh(make_mesh((2, 1, 4), jax.devices()[:8])):
    assert kernels(lowered("tpu", heads=2)) == (False, False)


@pytest.mark.parametrize(
  ("sizes", "implementation", "message"),
  [
    (dict(), "flash", "choose from auto, reference, pallas_tpu, pallas_gpu"),
    (dict(width=64), "pallas_tpu", "multiple of 128, not 64"),
    (dict(width=96), "pallas_gpu", "power of two"),
    (dict(queries=3), "pallas_gpu", "one query a row, not 3"),
    (dict(dtype=jnp.float16), "pallas_tpu", "float16"),
  ],
)
def test_what_a_kernel_lacks_is_said(sizes, implementation, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(partial(attend, implementation=implementation), *shapes(**sizes))


def test_the_kernel_does_not_wait_for_a_stage():
  """XLA's form reads as many slots as its stage has, the kernels what is seen: for equal masks they are equal."""
  rng = np.random.default_rng(1)
  q, k, v = (jnp.asarray(rng.normal(size=s.shape), jnp.float32) for s in shapes(dtype=jnp.float32)[:3])
  seen = np.arange(256)[None] < rng.integers(1, 120, (8, 1))
  staged = attend(q, k, v, 1, seen, 120, stages=(128,), implementation="reference")
  np.testing.assert_allclose(
    staged, attend(q, k, v, 1, seen, 256, stages=(128,), implementation="reference"), atol=2e-6
  )
  kernel = attend(q, k, v, 1, seen, 120, stages=(128,), implementation="pallas_gpu", interpret=True)
  np.testing.assert_allclose(staged, kernel, atol=2e-6)
