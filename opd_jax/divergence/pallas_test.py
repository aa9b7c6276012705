"""The kernels, by their interpreters, against float64 dense autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from opd_jax.divergence import pallas_gpu, pallas_tpu, testing
from opd_jax.divergence.problem import Inputs, Problem
from opd_jax.divergence.tiles import GpuTile, TpuTile

TPU = partial(pallas_tpu.rows_and_gradients, tile=TpuTile(8, 128, 60 << 20, 2))
GPU = partial(pallas_gpu.rows_and_gradients, tile=GpuTile(16, 64, 16))
VOCAB = 300


def check(kernel, kind, interpret, widths=(16, 32), padding=(2, 5), dtype=jnp.float32, factor=1.0):
  """21 tokens, 300 entries: no tile divides either. Both gradients, and the forward-only form."""
  arrays = testing.random_inputs(1, tokens=21, vocab=VOCAB, widths=widths, padding=padding, scale=2.0)
  arrays = {name: np.asarray(a, dtype) if a.ndim == 2 else a for name, a in arrays.items()}
  wide = {name: np.asarray(a, np.float32) if a.ndim == 2 else a for name, a in arrays.items()}
  arguments = {"kind": kind, "temperature": 0.8, "vocab_size": VOCAB, "student_softcap": 5.0}
  expected = testing.answer64(wide, **arguments)
  problem = Problem(kind, VOCAB, beta=0.5, student_temperature=0.8, teacher_temperature=0.8, student_softcap=5.0)
  inputs = Inputs(**{("ids" if name == "sampled_ids" else name): jnp.asarray(a) for name, a in arrays.items()})
  run = jax.jit(lambda inputs, wanted: kernel(problem, inputs, wanted, interpret=interpret), static_argnums=1)
  rows, d_hidden, d_head = run(inputs, (True, True))
  largest = testing.largest_logit(wide, VOCAB) / 0.8
  testing.assert_agree((rows, np.asarray(d_hidden), np.asarray(d_head)), expected, largest, factor)
  alone, *nothing = run(inputs, (False, False))
  assert nothing == [None, None]
  np.testing.assert_allclose(alone.per_token, rows.per_token, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd", "sampled"])
@pytest.mark.parametrize("kernel", [TPU, GPU], ids=["tpu", "gpu"])
def test_ragged_shapes(kernel, kind):
  check(kernel, kind, interpret=True)


@pytest.mark.parametrize("kernel", [TPU, GPU], ids=["tpu", "gpu"])
def test_bf16(kernel):
  check(kernel, "reverse_kl", interpret=True, dtype=jnp.bfloat16, factor=1e3)  # 1e-2 relative


def test_no_race_and_no_uninitialised_memory_on_tpu():
  """The TPU's interpreter: memory starts as NaN, concurrent accesses are compared."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where the interpreter leaves what it found

  try:
    # The interpreter cannot alias arrays whose rows its blocks do not divide: 300 + 84 = 3 * 128.
    check(TPU, "reverse_kl", pltpu.InterpretParams(detect_races=True), padding=(84, 84))
    assert not interpret_pallas_call.races.races_found
  finally:
    pltpu.reset_tpu_interpret_mode_state()
