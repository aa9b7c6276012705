"""Local supports of the streaming implementations against float64 dense autodiff."""

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.divergence import support, testing, token_chunk, vocab_chunk
from opd_jax.divergence.problem import Problem

REVERSE = ("renormalize", "tail", "generalized", "score_tail", "head_tail")
FORWARD = ("renormalize", "tail", "generalized", "truncate")
CALLS = [("reverse_kl", repair) for repair in REVERSE] + [("forward_kl", repair) for repair in FORWARD]


@pytest.fixture(autouse=True)
def small_cuts(monkeypatch):
  monkeypatch.setattr(token_chunk, "CPU", token_chunk.Sizes(chunk_bytes=1, tokens=6, block=128))
  monkeypatch.setattr(vocab_chunk, "BLOCK", 128)


@pytest.mark.parametrize(("kind", "repair"), CALLS)
@pytest.mark.parametrize(("chooser", "implementation"), [("teacher", "token_chunk"), ("union", "vocab_chunk")])
def test_value_and_gradients(kind, repair, chooser, implementation):
  arrays = testing.random_inputs(1, tokens=11, vocab=300, scale=2.0)
  arguments = {"kind": kind, "support": chooser, "top_k": 7, "repair": repair, "temperature": 0.8, "vocab_size": 300}
  expected = testing.answer64(arrays, **arguments)
  got = testing.answer(arrays, implementation=implementation, **arguments)
  testing.assert_agree(got, expected, testing.largest_logit(arrays, 300) / 0.8)


@pytest.mark.parametrize(("kind", "repair"), [("reverse_kl", "renormalize"), ("reverse_kl", "tail"), *CALLS[-1:]])
def test_the_sampled_token_joins_the_support(kind, repair):
  """Wherever it is not in it already: a vocabulary so small that both happen."""
  arrays = testing.random_inputs(3, tokens=24, vocab=40, scale=2.0)
  arguments = {"kind": kind, "support": "teacher", "top_k": 5, "repair": repair, "vocab_size": 40}
  expected = testing.answer64(arrays, with_sampled=True, **arguments)
  got = testing.answer(arrays, with_sampled=True, **arguments)
  testing.assert_agree(got, expected, testing.largest_logit(arrays, 40))
  without = testing.answer64(arrays, **arguments)[0].student_mass
  joined = np.exp(expected[0].student_logprob) * (expected[0].student_mass > without + 1e-12)
  np.testing.assert_allclose(expected[0].student_mass, without + joined, rtol=1e-12)
  assert 0 < (joined > 0).sum() < 24


@pytest.mark.parametrize("scale", [0.1, 60.0])
def test_the_tail_bucket_survives_extreme_logits(scale):
  """Outside the support there may be nothing that 1 - mass could tell from 0: its logarithm is summed directly."""
  arrays = testing.random_inputs(2, tokens=6, vocab=200, scale=scale)
  arguments = {"kind": "forward_kl", "support": "student", "top_k": 5, "repair": "tail", "vocab_size": 200}
  got = testing.answer(arrays, **arguments)
  testing.assert_agree(got, testing.answer64(arrays, **arguments), testing.largest_logit(arrays, 200))


def test_the_best_entries_found_by_streaming_are_those_of_a_full_sort():
  """Also with ties, where the earliest wins, and with masked entries."""
  rng = np.random.default_rng(0)
  z, y = rng.integers(0, 30, (2, 4, 96)).astype(np.float32)
  problem = Problem("reverse_kl", 96, support="union", top_k=9, repair="tail")
  chosen = support.start(problem, 4, jnp.float32)
  for first in range(0, 96, 16):
    block = slice(first, first + 16)
    chosen = support.update(problem, chosen, jnp.arange(first, first + 16), jnp.asarray(z[:, block]), y[:, block])
  for entries, logits in zip(chosen, (z, y)):
    wanted = np.argsort(-logits, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(entries.ids, wanted)
    np.testing.assert_array_equal(entries.student, np.take_along_axis(z, wanted, axis=1))
  union = support.combined(problem, chosen)
  for row, ids in enumerate(np.asarray(union.ids)):
    held = ids[ids >= 0]
    assert len(held) == len(set(held)) and set(held) == set(chosen[0].ids[row].tolist()) | set(
      chosen[1].ids[row].tolist()
    )
