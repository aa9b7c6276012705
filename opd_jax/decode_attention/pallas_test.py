"""The kernels, by their interpreters, against dense attention in float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from opd_jax.decode_attention import attend, pallas_gpu, pallas_tpu
from opd_jax.distributed import make_mesh

LAYERS, ROWS, HEADS, GROUP, WIDTH, SLOTS = 2, 4, 2, 3, 128, 300  # the last block of slots is not whole
KERNELS = ("pallas_tpu", "pallas_gpu")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
  """The TPU's are of 128 slots, as few as can be: of its own choice it would take all at once. The GPU's five of 64 are
  shared out among three programs: it would take five."""
  monkeypatch.setattr(pallas_tpu, "_BLOCK_BYTES", 1)
  monkeypatch.setattr(pallas_gpu, "_PROGRAMS", 3 * ROWS * HEADS)


@cache
def arrays(dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
  rng = np.random.default_rng(0)
  stack = (LAYERS, ROWS, HEADS)
  shapes = (ROWS, 1, HEADS * GROUP, WIDTH), (*stack, WIDTH, SLOTS), (*stack, SLOTS, WIDTH)
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def runs(*run: tuple[int, int]) -> np.ndarray:
  """bool [B, S]: of each row the slots from its padding's end to what is filled."""
  slots = np.arange(SLOTS)
  return np.stack([(first <= slots) & (slots < end) for first, end in run])


def dense64(query_b1nh, keys_lbkhs, values_lbksh, layer: int, seen_bs) -> np.ndarray:
  query_bkgh = np.asarray(query_b1nh, np.float64).reshape(ROWS, HEADS, GROUP, WIDTH)
  key_bkhs, value_bksh = np.asarray(keys_lbkhs[layer], np.float64), np.asarray(values_lbksh[layer], np.float64)
  scores = np.where(seen_bs[:, None, None], query_bkgh @ key_bkhs / np.sqrt(WIDTH), -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return (weights / weights.sum(-1, keepdims=True) @ value_bksh).reshape(ROWS, 1, HEADS * GROUP, WIDTH)


def run(kernel: str, *operands, interpret=True) -> np.ndarray:
  call = partial(attend, filled=SLOTS, implementation=kernel, interpret=interpret)
  return np.asarray(jax.jit(call)(*operands), np.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_block_edges_and_single_slots(kernel):
  q, k, v = arrays(jnp.float32)
  call = jax.jit(partial(attend, filled=SLOTS, implementation=kernel, interpret=True))
  for seen in (
    runs((0, 1), (0, 1), (0, 1), (0, 1)),
    runs((0, 127), (0, 128), (0, 129), (128, 129)),
    runs((3, 256), (127, 257), (255, 256), (256, 257)),
    runs((0, 300), (299, 300), (130, 300), (64, 192)),
  ):
    for layer in range(LAYERS):
      np.testing.assert_allclose(call(q, k, v, layer, seen), dense64(q, k, v, layer, seen), atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16(kernel):
  operands = (*arrays(jnp.bfloat16), 1, runs((0, 300), (5, 140), (0, 128), (200, 201)))
  np.testing.assert_allclose(run(kernel, *operands), dense64(*operands), atol=2e-2)  # weights and result are rounded


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_without_a_seen_slot_are_not_read(kernel):
  """They hold NaN, and so does the other layer."""
  q, k, v = arrays(jnp.float32)
  seen = runs((0, 100), (130, 250), (260, 300), (20, 256))
  blocks = np.repeat(np.pad(seen, ((0, 0), (0, 84))).reshape(ROWS, 3, 128).any(2), 128, axis=1)[:, :SLOTS]
  read = np.stack([np.zeros_like(blocks), blocks])
  k = jnp.where(read[:, :, None, None, :], k, jnp.nan)
  v = jnp.where(read[:, :, None, :, None], v, jnp.nan)
  expected = dense64(q, np.nan_to_num(k), np.nan_to_num(v), 1, seen)
  np.testing.assert_allclose(run(kernel, q, k, v, 1, seen), expected, atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_without_a_slot_is_finite_and_disturbs_nobody(kernel):
  operands = (*arrays(jnp.float32), 0, runs((0, 0), (5, 300), (300, 300), (0, 7)))
  mixed = run(kernel, *operands)
  assert np.isfinite(mixed).all()
  with np.errstate(invalid="ignore"):
    np.testing.assert_allclose(mixed[1::2], dense64(*operands)[1::2], atol=2e-6)


def test_no_race_and_no_uninitialised_memory_on_tpu():
  """The TPU's interpreter: memory starts as NaN, concurrent accesses are compared."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where the interpreter leaves what it found

  operands = (*arrays(jnp.float32), 1, runs((0, 300), (140, 300), (0, 100), (299, 300)))
  try:
    mixed = run("pallas_tpu", *operands, interpret=pltpu.InterpretParams(detect_races=True))
    assert not interpret_pallas_call.races.races_found
  finally:
    pltpu.reset_tpu_interpret_mode_state()
  np.testing.assert_allclose(mixed, dense64(*operands), atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1)])
def test_on_a_mesh(kernel, sizes):
  """Rows over data and fsdp, heads over tensor; 8 devices do not divide the 4 rows, so each has them all."""
  operands = (*arrays(jnp.float32), 1, runs((0, 300), (5, 140), (0, 128), (200, 201)))
  with jax.set_mesh(make_mesh(sizes, jax.devices()[:8])):
    mixed = run(kernel, *operands)
  np.testing.assert_allclose(mixed, dense64(*operands), atol=2e-6)
