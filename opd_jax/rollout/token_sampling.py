"""From one position's logits to one token, in float32: temperature, top-k, top-p, and a key of the row's own.

A draw by argmax(log weight + Gumbel noise) needs noise for every id of the vocabulary. Made in two steps it needs 128
numbers of noise for blocks of ids, then one for each id of the block that was drawn:

    weights exp(z - max z)   [ . . . . | . . . . | . . . . | . . . . ]
    their sums, with noise       s0        s1       (s2)       s3          one of 128 blocks
    weights of s2, with noise                   [ . . (.) . ]              one of V / 128 ids

That is exactly one draw among all ids: P(block) P(id | block) = sum / total * weight / sum. 128 divides the
vocabularies in use, and is divided by every `tensor` axis of a power of two, so a block lies on one device.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # a finite minus infinity: no inf - inf anywhere downstream

_BLOCKS = 128  # a constant: an id's noise must not depend on how the vocabulary is sharded


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; top-k is applied before top-p."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


class Drawn(NamedTuple):
  """A token for each row, int32 [B]; its log-probability in nats under the temperature-scaled softmax before top-k and
  top-p (temperature 1 when greedy), float32 [B]; and that softmax's entropy in nats, float32 [B]."""

  tokens_b: jax.Array
  logprob_b: jax.Array
  entropy_b: jax.Array


def sample(logits_bv: jax.Array, keys_b: jax.Array, sampling: Sampling, vocab_size: int) -> Drawn:
  """Draws a token for each row.

  Args:
    logits_bv: float32 [B, V]; entries from `vocab_size` on (a padded vocabulary) are never drawn.
    keys_b: [B] random keys, one a row, so that a row's token does not depend on its neighbours.
    sampling: temperature, top-k and top-p (static).
    vocab_size: number of ids that the tokenizer has (static).
  """
  logits_bv = logits_bv.astype(jnp.float32)
  if vocab_size < logits_bv.shape[1]:
    logits_bv = jnp.where(jnp.arange(logits_bv.shape[1]) < vocab_size, logits_bv, MASKED)
  if sampling.temperature == 0:
    tokens_b, largest_b = _most_probable(logits_bv)
    weights_bv, of_token_b = jnp.exp(logits_bv - largest_b[:, None]), 1.0
  else:
    logits_bv = logits_bv / sampling.temperature
    largest_b = logits_bv.max(axis=-1)
    weights_bv = jnp.exp(logits_bv - largest_b[:, None])
    kept_bv = _top_p(_top_k(weights_bv, sampling.top_k), sampling.top_p)
    tokens_b, of_token_b = _draw(kept_bv, keys_b)
  total_b = weights_bv.sum(axis=-1)
  mean_b = (weights_bv * (logits_bv - largest_b[:, None])).sum(axis=-1) / total_b
  return Drawn(tokens_b, jnp.log(of_token_b / total_b), jnp.log(total_b) - mean_b)


def _draw(weights_bv: jax.Array, keys_b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """An id of each row, drawn in proportion to the weights, and its weight."""
  weights_bnk = _blocks(weights_bv, 0.0)
  noise_bi = jax.vmap(lambda key: jax.random.gumbel(key, (_BLOCKS + weights_bnk.shape[2],), jnp.float32))(keys_b)
  block_b = jnp.argmax(jnp.log(weights_bnk.sum(axis=-1)) + noise_bi[:, :_BLOCKS], axis=-1)
  return _within(weights_bnk, block_b, lambda weights_bk: jnp.log(weights_bk) + noise_bi[:, _BLOCKS:])


def _most_probable(logits_bv: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The first id of each row with the largest logit, and that logit. Maxima vectorise; a long argmax does not."""
  logits_bnk = _blocks(logits_bv, MASKED)
  return _within(logits_bnk, jnp.argmax(logits_bnk.max(axis=-1), axis=-1), lambda logits_bk: logits_bk)


def _blocks(values_bv: jax.Array, padding: float) -> jax.Array:
  """[B, 128, K] of [B, V], filled up with `padding` to a multiple of 128."""
  filled_bv = jnp.pad(values_bv, ((0, 0), (0, -values_bv.shape[1] % _BLOCKS)), constant_values=padding)
  return filled_bv.reshape(len(values_bv), _BLOCKS, -1)


def _within(values_bnk: jax.Array, block_b: jax.Array, score) -> tuple[jax.Array, jax.Array]:
  """The id of largest score in each row's block, and its value."""
  values_bk = jnp.take_along_axis(values_bnk, block_b[:, None, None], axis=1)[:, 0]
  place_b = jnp.argmax(score(values_bk), axis=-1)
  value_b = jnp.take_along_axis(values_bk, place_b[:, None], axis=-1)[:, 0]
  return (block_b * values_bnk.shape[2] + place_b).astype(jnp.int32), value_b


def _top_k(weights_bv: jax.Array, k: int) -> jax.Array:
  """Zero for all but the `k` largest weights (and any that tie with the k-th)."""
  if k <= 0 or k >= weights_bv.shape[-1]:
    return weights_bv
  return _largest(weights_bv, lambda kept_bv: kept_bv.sum(axis=-1, dtype=jnp.int32) >= k)


def _top_p(weights_bv: jax.Array, p: float) -> jax.Array:
  """Zero for all but the largest weights that reach the share `p` of the sum (at least one, and any that tie)."""
  if p >= 1:
    return weights_bv
  wanted_b = p * weights_bv.sum(axis=-1)
  return _largest(weights_bv, lambda kept_bv: jnp.where(kept_bv, weights_bv, 0).sum(axis=-1) >= wanted_b)


def _largest(weights_bv: jax.Array, enough) -> jax.Array:
  """Zero for all but the fewest largest weights that are `enough` (bool [B, V] -> bool [B]); weights lie in 0..1.

  The threshold is found by bisection over the bits of a float32, which are ordered as the numbers are: 30 sums, no sort
  of the vocabulary, and where it is sharded only [B] numbers travel.
  """
  bits_bv = jax.lax.bitcast_convert_type(weights_bv, jnp.int32)

  def halve(_, bounds):
    low_b, high_b = bounds
    middle_b = (low_b + high_b) // 2
    enough_b = enough(bits_bv >= middle_b[:, None])
    return jnp.where(enough_b, middle_b, low_b), jnp.where(enough_b, high_b, middle_b)

  least = jnp.zeros(len(weights_bv), jnp.int32)
  beyond = jax.lax.bitcast_convert_type(jnp.ones(len(weights_bv), jnp.float32), jnp.int32) + 1
  threshold_b, _ = jax.lax.fori_loop(0, 30, halve, (least, beyond))
  return jnp.where(bits_bv >= threshold_b[:, None], weights_bv, 0)
