"""Drawing a token, against the written definitions of temperature, top-k and top-p in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.rollout.token_sampling import Sampling, sample


def kept_set(logits, temperature, k, p):
  """The ids that may be drawn, by definition: top-k first, then the smallest most probable set of mass >= p."""
  scaled = np.asarray(logits, np.float64) / temperature
  order = np.argsort(-scaled, kind="stable")
  order = order[:k] if k else order
  weights = np.exp(scaled[order] - scaled[order].max())
  mass = np.cumsum(weights / weights.sum())
  return set(order[: int(np.searchsorted(mass, p - 1e-9) + 1)].tolist()) if p < 1 else set(order.tolist())


def draws(logits, sampling, vocab_size, count, seed=0):
  keys = jax.random.split(jax.random.key(seed), count)
  logits = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
  tokens, logprobs, entropies = sample(logits, keys, sampling, vocab_size)
  return np.asarray(tokens), np.asarray(logprobs), np.asarray(entropies)


@settings(max_examples=40)
@given(
  st.lists(st.integers(-60, 60), min_size=12, max_size=12, unique=True),
  st.sampled_from([0.5, 1.0, 2.0]),
  st.integers(0, 12),
  st.sampled_from([0.05, 0.5, 0.9, 1.0]),
  st.integers(0, 2**31 - 1),
)
def test_only_tokens_of_the_kept_set_are_drawn_and_logprob_ignores_the_cut(integers, temperature, k, p, seed):
  logits = np.array(integers) / 10
  tokens, logprobs, entropies = draws(logits, Sampling(temperature, k, p), 12, 64, seed)
  assert set(tokens.tolist()) <= kept_set(logits, temperature, k, p)
  scaled = logits.astype(np.float64) / temperature
  expected = scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())
  np.testing.assert_allclose(logprobs, expected[tokens], atol=2e-6)
  np.testing.assert_allclose(entropies, -(np.exp(expected) * expected).sum(), atol=5e-6)


def test_frequencies_are_those_of_the_renormalised_softmax():
  logits = np.array([1.0, 0.3, -0.5, 2.0, 0.0])
  tokens, *_ = draws(logits, Sampling(0.7, 3, 1.0), 5, 20_000)
  weights = np.exp(logits / 0.7)
  weights[[2, 4]] = 0  # top-3 keeps ids 3, 0, 1
  np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 20_000, weights / weights.sum(), atol=0.012)


def test_padded_ids_are_never_drawn_and_take_no_mass():
  logits = np.array([0.0, 1.0, 50.0, 60.0])
  for sampling in (Sampling(1.0), Sampling(0.0), Sampling(1.0, 1), Sampling(1.0, 0, 0.5)):
    tokens, logprobs, _ = draws(logits, sampling, 2, 200)
    assert set(tokens.tolist()) <= {0, 1}
    np.testing.assert_allclose(logprobs, np.array([-1.3132617, -0.3132617])[tokens], atol=1e-6)


def test_greedy_is_the_argmax_with_the_logprob_of_temperature_one():
  tokens, logprobs, _ = draws([0.1, 3.0, 2.9], Sampling(0.0), 3, 4)
  assert tokens.tolist() == [1] * 4
  exact = np.array([0.1, 3.0, 2.9])
  np.testing.assert_allclose(logprobs, 3.0 - np.log(np.exp(exact).sum()), atol=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, 4, 0.8)])
def test_a_row_does_not_depend_on_its_neighbours(sampling):
  logits = jax.random.normal(jax.random.key(1), (6, 32))
  keys = jax.random.split(jax.random.key(2), 6)
  together, *_ = sample(logits, keys, sampling, 32)
  alone = [int(sample(logits[i : i + 1], keys[i : i + 1], sampling, 32)[0][0]) for i in range(6)]
  assert together.tolist() == alone


@pytest.mark.parametrize("vocab", [127, 128, 1000])
def test_blocks_of_any_size_give_the_softmax(vocab):
  """Chi-squared over the ids that are drawn often: all blocks of ids, and the ids within them."""
  rng = np.random.default_rng(vocab)
  logits = np.where(rng.random(vocab) < 0.1, 3.0, -3.0) + rng.normal(size=vocab)
  tokens, *_ = draws(logits, Sampling(1.0), vocab, 20_000, seed=vocab)
  expected = np.exp(logits) / np.exp(logits).sum() * 20_000
  frequent = expected > 20
  counts = np.append(np.bincount(tokens, minlength=vocab)[frequent], np.sum(~frequent[tokens]))
  expected = np.append(expected[frequent], expected[~frequent].sum())
  degrees = len(expected) - 1
  assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


def test_an_id_keeps_its_noise_when_the_vocabulary_is_filled_up():
  """A head split over `tensor` has rows past the vocabulary; nobody may notice."""
  logits = np.random.default_rng(0).normal(size=130)
  filled = np.append(logits, [9.0, 9.0])
  for sampling in (Sampling(1.0), Sampling(1.0, 20, 0.9), Sampling(0.0)):
    assert np.array_equal(draws(logits, sampling, 130, 200)[0], draws(filled, sampling, 130, 200)[0])


def test_top_p_against_the_definition_on_a_large_vocabulary():
  """Every id of the kept set is drawn, and no other; ids are few enough that a miss has a probability below 1e-9."""
  rng = np.random.default_rng(3)
  logits = np.append(rng.permutation(np.linspace(0, 1.5, 40)), rng.normal(size=3000) * 0.1 - 6)
  kept = kept_set(logits, 1.0, 0, 0.7)
  tokens, *_ = draws(logits, Sampling(1.0, 0, 0.7), len(logits), 4000)
  assert set(tokens.tolist()) == kept and 10 < len(kept) < 40
