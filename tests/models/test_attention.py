"""Attention against its definition in float64, dense and in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.models import attention


def definition(query, key, value, keys):
  """Row by row and head by head, over the seen keys alone."""
  b, t, n, h = query.shape
  s, k = key.shape[1:3]
  out = np.zeros((b, t, n, h))
  for row in range(b):
    for i in range(t):
      seen = np.flatnonzero(keys[row, : s - t + i + 1])
      for head in range(n if len(seen) else 0):
        kv = head // (n // k)
        scores = key[row, seen, kv] @ query[row, i, head] / np.sqrt(h)
        weights = np.exp(scores - scores.max())
        out[row, i, head] = weights @ value[row, seen, kv] / weights.sum()
  return out


def arrays(t, s, b=2, n=4, k=2, h=8, seed=0):
  rng = np.random.default_rng(seed)
  query, key, value = (rng.normal(size=(b, length, heads, h)) for length, heads in ((t, n), (s, k), (s, k)))
  keys = np.arange(s) >= np.arange(b)[:, None] * 3  # left padding: none, three
  keys[:, s // 2] = False
  return query, key, value, keys


def float32(arrays):
  return [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in arrays]


# The same sizes as in production would take minutes in float64, so the blocks are made small.
@pytest.mark.parametrize("t, s", [(1, 9), (7, 7), (5, 9), (16, 16), (33, 33), (40, 57)])
@pytest.mark.parametrize("form", ["dense", "blocks"])
def test_values_are_those_of_the_definition(t, s, form, monkeypatch):
  if form == "blocks":
    monkeypatch.setattr(attention, "_DENSE", 0)
    monkeypatch.setattr(attention, "_BLOCK", 4)
  given = arrays(t, s)
  ours = np.array(attention.attend(*float32(given)))
  expected = definition(*given)
  blind = ~np.stack([given[3][:, : s - t + i + 1].any(1) for i in range(t)], axis=1)
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours[~blind], expected[~blind], atol=2e-6)


def test_blocks_have_the_gradient_of_the_dense_form(monkeypatch):
  query, key, value, keys = float32(arrays(40, 40, seed=1))
  weights = jnp.asarray(np.random.default_rng(2).normal(size=query.shape), jnp.float32) * keys[:, :, None, None]

  def gradient():
    def loss(*qkv):
      return jnp.sum(attention.attend(*qkv, keys) * weights)

    return jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

  dense = gradient()
  monkeypatch.setattr(attention, "_DENSE", 0)
  monkeypatch.setattr(attention, "_BLOCK", 8)
  for ours, theirs in zip(gradient(), dense, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_long_attention_holds_blocks_of_scores_not_all_of_them():
  """Forward and backward at 4,096 queries: all scores of one head would be 64 MiB."""
  shapes = [jax.ShapeDtypeStruct((1, 4096, heads, 8), jnp.float32) for heads in (2, 1, 1)]
  keys = jax.ShapeDtypeStruct((1, 4096), jnp.bool_)

  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradient(query, key, value, keys):
    return jnp.sum(attention.attend(query, key, value, keys))

  memory = jax.jit(gradient).lower(*shapes, keys).compile().memory_analysis()
  scores = 2 * 4096 * 4096 * 4
  assert memory.temp_size_in_bytes < 0.6 * scores
