"""From one position's logits to one token, in float32: temperature, top-k, top-p, and a key of the row's own."""

import dataclasses

import jax
import jax.numpy as jnp

MASKED = -1e30  # a finite minus infinity: no inf - inf anywhere downstream


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; top-k is applied before top-p."""

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0


def sample(logits_bv: jax.Array, keys_b: jax.Array, sampling: Sampling, vocab_size: int) -> tuple[jax.Array, jax.Array]:
  """Draws a token for each row.

  Args:
    logits_bv: float32 [B, V]; entries from `vocab_size` on (a padded vocabulary) are never drawn.
    keys_b: [B] random keys, one a row, so that a row's token does not depend on its neighbours.
    sampling: temperature, top-k and top-p (static).
    vocab_size: number of ids that the tokenizer has (static).

  Returns:
    tokens_b int32 [B], and logprob_b float32 [B]: the token's log-probability under the temperature-scaled softmax
    before top-k and top-p (temperature 1 when greedy).
  """
  logits_bv = jnp.where(jnp.arange(logits_bv.shape[-1]) < vocab_size, logits_bv.astype(jnp.float32), MASKED)
  if sampling.temperature == 0:
    tokens_b = jnp.argmax(logits_bv, axis=-1)
  else:
    logits_bv = logits_bv / sampling.temperature
    kept_bv = _top_p(_top_k(logits_bv, sampling.top_k), sampling.top_p)
    # argmax(logits + Gumbel noise) draws from the softmax; noise by row key, whole vocabulary, whatever the sharding.
    noise_bv = jax.vmap(lambda key: jax.random.gumbel(key, logits_bv.shape[-1:], jnp.float32))(keys_b)
    tokens_b = jnp.argmax(kept_bv + noise_bv, axis=-1)
  logprob_bv = jax.nn.log_softmax(logits_bv, axis=-1)
  logprob_b = jnp.take_along_axis(logprob_bv, tokens_b[:, None], axis=-1)[:, 0]
  return tokens_b.astype(jnp.int32), logprob_b


def _top_k(logits_bv: jax.Array, k: int) -> jax.Array:
  """Masks all but the `k` largest logits (and any that tie with the k-th)."""
  if k <= 0 or k >= logits_bv.shape[-1]:
    return logits_bv
  threshold_b1 = jax.lax.top_k(logits_bv, k)[0][:, -1:]
  return jnp.where(logits_bv >= threshold_b1, logits_bv, MASKED)


def _top_p(logits_bv: jax.Array, p: float) -> jax.Array:
  """Masks all but the smallest set of most probable tokens whose mass reaches `p` (at least one token)."""
  if p >= 1:
    return logits_bv
  sorted_bv = -jnp.sort(-logits_bv, axis=-1)
  probability_bv = jax.nn.softmax(sorted_bv, axis=-1)
  before_bv = jnp.cumsum(probability_bv, axis=-1) - probability_bv  # mass of the tokens ahead of this one
  threshold_b1 = jnp.min(jnp.where(before_bv < p, sorted_bv, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits_bv >= threshold_b1, logits_bv, MASKED)
