"""Causal attention with grouped heads over keys that may be padding; in blocks of queries where it is long.

The T queries are those of the last T of the S key slots, and see what is not padding up to themselves:

    keys_bs      0 1 1 1 1 1 0          S = 7, T = 3; the last slot is not written yet
    query 0      . x x x x              sees slots 0 .. S - T + 0
    query 1      . x x x x x
    query 2      . x x x x x .

So prefill (T = S), decode (T = 1) and scoring (no cache) are one rule. Scores are [T, S] a head and row; past
`_DENSE` queries only `_BLOCK` rows of them exist at a time, forward and backward:

    queries  0 .. 511     [block |                        ]
           512 .. 1023    [block | block |                ]      four spans of blocks: a span reads no key beyond
          1024 .. 1535    [ ...                           ]      its end, so that of the upper triangle, which
             ...                                                 nobody sees, most is never computed
"""

import jax
import jax.numpy as jnp

# Scores of keys that may not be attended. Finite, so that a row without any allowed key (left padding) gets a
# uniform average that nobody reads, instead of NaN that would spread through gradients.
MASKED = -1e30
_DENSE = 1024  # up to so many queries all scores at once are faster, and small
_BLOCK = 512
_SPANS = 4


def attend(query_btnh: jax.Array, key_bskh: jax.Array, value_bskh: jax.Array, keys_bs: jax.Array) -> jax.Array:
  """[B, T, N, H] in the values' dtype: query head n reads key-value head n // (N / K). Softmax in float32.

  Args:
    query_btnh: [B, T, N, H], scaled here by H^-0.5.
    key_bskh, value_bskh: [B, S, K, H], S >= T.
    keys_bs: bool [B, S], true where a slot holds a token. A query without any such slot gets a finite value.
  """
  b, t, n, h = query_btnh.shape
  s, k = key_bskh.shape[1:3]
  query_btkgh = query_btnh.reshape(b, t, k, n // k, h)
  if t <= _DENSE:
    mixed = _dense(query_btkgh, key_bskh, value_bskh, keys_bs, s - t)
  else:
    mixed = _in_blocks(query_btkgh, key_bskh, value_bskh, keys_bs)
  return mixed.reshape(b, t, n, h)


def queries_at_once(queries: int) -> int:
  """For how many of so many queries scores exist at the same time."""
  return queries if queries <= _DENSE else _BLOCK


def _dense(query_btkgh, key_bskh, value_bskh, keys_bs, first: jax.Array | int) -> jax.Array:
  """[B, T, K, G, H] of queries that stand at slots `first`, `first` + 1, ..."""
  t, h, s = query_btkgh.shape[1], query_btkgh.shape[4], key_bskh.shape[1]
  seen_bts = keys_bs[:, None, :]
  if t > 1:
    seen_bts &= jnp.arange(s) <= first + jnp.arange(t)[:, None]
  scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", query_btkgh, key_bskh, preferred_element_type=jnp.float32)
  scores_bkgts = jnp.where(seen_bts[:, None, None], scores_bkgts * h**-0.5, MASKED)
  weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(value_bskh.dtype)
  return jnp.einsum("bkgts,bskh->btkgh", weights_bkgts, value_bskh)


def _in_blocks(query_btkgh, key_bskh, value_bskh, keys_bs) -> jax.Array:
  """The same, `_BLOCK` queries at a time; the backward pass computes the scores of a block again."""
  t, s = query_btkgh.shape[1], key_bskh.shape[1]
  blocks = -(-t // _BLOCK)
  query_btkgh = jnp.pad(query_btkgh, ((0, 0), (0, blocks * _BLOCK - t), (0, 0), (0, 0), (0, 0)))
  query_nbqkgh = jnp.moveaxis(query_btkgh.reshape(query_btkgh.shape[0], blocks, _BLOCK, *query_btkgh.shape[2:]), 1, 0)
  mixed = []
  for span in range(_SPANS):
    start, stop = (blocks * i // _SPANS for i in (span, span + 1))
    if start == stop:
      continue
    end = min(s, s - t + stop * _BLOCK)
    keys = key_bskh[:, :end], value_bskh[:, :end], keys_bs[:, :end]

    @jax.checkpoint
    def block(index, query_bqkgh, keys=keys):
      return _dense(query_bqkgh, *keys, s - t + index * _BLOCK)

    mixed.append(jax.lax.map(lambda xs: block(*xs), (jnp.arange(start, stop), query_nbqkgh[start:stop])))
  mixed_bnqkgh = jnp.moveaxis(jnp.concatenate(mixed), 0, 1)
  return mixed_bnqkgh.reshape(query_btkgh.shape)[:, :t]
