"""Which tokens count and how much, against plain Python over each response."""

import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives.selection import Selection, take_columns
from opd_jax.objectives.token_weights import TokenWeights


@st.composite
def responses(draw):
  """Tokens of a tiny vocabulary, so that all occur again and again, and lengths from 0."""
  width = draw(st.integers(1, 8))
  rows = draw(st.lists(st.lists(st.integers(0, 4), max_size=width), min_size=1, max_size=5))
  tokens, mask = np.full((len(rows), width), 3), np.zeros((len(rows), width), bool)  # padding is a special token too
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return rows, tokens, mask


@settings(max_examples=100)
@given(responses())
def test_first_occurrences_and_listed_ids_are_left_out(batch):
  rows, tokens, mask = batch
  weights = np.asarray(TokenWeights(first_of=(1, 3), all_of=(2,))(jnp.asarray(tokens), jnp.asarray(mask)))
  kept = []
  for row, ids in enumerate(rows):
    for t, token in enumerate(ids):
      if token != 2 and not (token in (1, 3) and token not in ids[:t]):
        kept.append((row, t))
  assert sorted(zip(*(x.tolist() for x in np.nonzero(weights)))) == sorted(kept)
  np.testing.assert_allclose(weights.sum(), 1.0 if kept else 0.0, rtol=1e-6)
  assert len(set(weights[weights > 0].tolist())) <= 1


def test_a_slope_weights_one_end_and_leaves_the_mean():
  mask = jnp.ones((2, 5), bool)
  weights = TokenWeights(slope=1.0)(jnp.zeros((2, 5), jnp.int32), mask)
  np.testing.assert_allclose(weights[0] * 10, [0.5, 0.75, 1.0, 1.25, 1.5])
  np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)


@settings(max_examples=100)
@given(responses(), st.sampled_from([0.2, 0.34, 0.5, 1.0]), st.integers(0, 1000))
def test_the_tokens_of_largest_score_are_chosen_and_weigh_one_together(batch, share, seed):
  rows, tokens, mask = batch
  score = np.random.default_rng(seed).permutation(tokens.size).reshape(tokens.shape).astype(np.float32)
  weights = TokenWeights(all_of=(2,), share=share)(jnp.asarray(tokens), jnp.asarray(mask))
  columns, chosen = Selection("entropy", share).columns(jnp.asarray(score), weights)
  for row, ids in enumerate(rows):
    counting = [t for t, token in enumerate(ids) if token != 2]
    best = sorted(counting, key=lambda t: -score[row, t])[: math.ceil(len(counting) * share - 1e-9)]
    assert sorted(np.asarray(columns)[row][np.asarray(chosen)[row] > 0].tolist()) == sorted(best)
  np.testing.assert_allclose(chosen.sum(), float((weights > 0).any()), rtol=1e-6)
  assert np.array_equal(take_columns(jnp.asarray(tokens), columns), np.take_along_axis(tokens, np.asarray(columns), 1))
