"""The op on eight simulated devices gives the numbers of one."""

import jax
import numpy as np
import pytest

from opd_jax.divergence import testing, token_chunk, vocab_chunk

LAYOUTS = [{"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}, {"tensor": 8}]


@pytest.fixture(autouse=True)
def small_cuts(monkeypatch):
  monkeypatch.setattr(token_chunk, "CPU", token_chunk.Sizes(chunk_bytes=1, tokens=6, block=32))
  monkeypatch.setattr(vocab_chunk, "BLOCK", 32)


CALLS = [
  ({"kind": "reverse_kl"}, LAYOUTS[0], "token_chunk"),
  ({"kind": "jsd"}, LAYOUTS[1], "token_chunk"),
  ({"kind": "sampled"}, LAYOUTS[2], "auto"),
  ({"kind": "forward_kl"}, LAYOUTS[3], "vocab_chunk"),
  ({"kind": "reverse_kl", "interpret": True}, LAYOUTS[0], "pallas_tpu"),
  ({"kind": "reverse_kl", "support": "union", "top_k": 5, "repair": "tail"}, LAYOUTS[0], "vocab_chunk"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 5, "repair": "score_tail"}, LAYOUTS[1], "token_chunk"),
]


@pytest.mark.parametrize(("arguments", "layout", "implementation"), CALLS)
def test_layouts(arguments, layout, implementation):
  """13 tokens and the student's rows split over no axis evenly; devices at the end of `tensor` hold padding alone."""
  if jax.device_count() < 8:
    pytest.skip("needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
  mesh = jax.make_mesh(tuple(layout.values()), tuple(layout), axis_types=(jax.sharding.AxisType.Auto,) * len(layout))
  arrays = testing.random_inputs(1, tokens=13, vocab=150, padding=(51, 5))
  arguments = arguments | {"temperature": 0.9, "vocab_size": 150}
  expected = testing.answer64(arrays, **{**arguments, "interpret": False})
  got = testing.answer(arrays, implementation=implementation, mesh=mesh, **arguments)
  testing.assert_agree(got, expected, testing.largest_logit(arrays, 150) / 0.9)
  assert (got[2][150:] == 0).all()
  np.testing.assert_allclose(got[0].loss, expected[0].loss, rtol=1e-5, atol=1e-4)
