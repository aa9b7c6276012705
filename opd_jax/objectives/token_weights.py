"""How much each generated token counts.

    mask_bs     1  1  1  1  1  0        a completion of five tokens
    left out          x                 the first "<" of the response: teacher and student spell it differently
    kept        1  1  .  1  1  0  / 4   divided by what is kept in the whole global batch
    position    more towards one end, where asked for

The divisor is counted before the batch is cut into micro-batches, so the sum over their losses is the loss of the
whole, whatever the split, the padding or the number of devices.
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.config import Config


@dataclasses.dataclass(frozen=True)
class TokenWeights:
  """Which tokens are left out, and how the others are weighted.

  Attributes:
    first_of: ids; the first occurrence of each in a response is left out (arXiv 2603.25562, released code: "<",
      "think", "<|im_end|>").
    all_of: ids that are left out wherever they occur.
    slope: -2 .. 2; a token's weight goes in a straight line from 1 - slope / 2 at the first column to 1 + slope / 2 at
      the last that the batch's longest completion reaches (later tokens weighted up: arXiv 2605.21606).
    share: of a response's tokens that are selected later (`selection`); all count for the divisor as they will.
    reached: (length, probability that a step's horizon is at least that) ascending, of a horizon that is drawn
      (`horizon.RandomPrefix`): a token weighs one over the probability that its column is reached, over rows times the
      greatest length.
  """

  first_of: tuple[int, ...] = ()
  all_of: tuple[int, ...] = ()
  slope: float = 0.0
  share: float = 1.0
  reached: tuple[tuple[int, float], ...] = ()

  def __call__(self, tokens_bs: jax.Array, mask_bs: jax.Array) -> jax.Array:
    """float32 [B, S], 0 off the mask and on tokens left out. Without a slope they sum to 1 over the tokens that will
    train (all 0 where there is none).

    Args:
      tokens_bs: int32 [B, S], the completions of the global batch.
      mask_bs: bool [B, S], true on a prefix of each row.
    """
    kept_bs = mask_bs & ~self.left_out(tokens_bs, mask_bs)
    count = selected(kept_bs.sum(axis=1), self.share).sum()
    weights_bs = kept_bs.astype(jnp.float32) / jnp.maximum(count, 1)
    if self.reached:
      lengths, probabilities = map(jnp.asarray, zip(*self.reached, strict=True))
      rung_s = jnp.searchsorted(lengths, jnp.arange(mask_bs.shape[1]), side="right")
      seldom_s = 1 / probabilities[jnp.minimum(rung_s, len(lengths) - 1)]
      weights_bs = kept_bs * seldom_s / (mask_bs.shape[0] * self.reached[-1][0])
    if not self.slope:
      return weights_bs
    last = jnp.maximum(mask_bs.sum(axis=1).max() - 1, 1)
    return weights_bs * (1 + self.slope * (jnp.arange(mask_bs.shape[1]) / last - 0.5))

  def left_out(self, tokens_bs: jax.Array, mask_bs: jax.Array) -> jax.Array:
    """bool [B, S]: special tokens that do not train."""
    out_bs = jnp.zeros(tokens_bs.shape, bool)
    for token in self.all_of:
      out_bs |= tokens_bs == token
    for token in self.first_of:
      here_bs = mask_bs & (tokens_bs == token)
      out_bs |= here_bs & (jnp.cumsum(here_bs, axis=1) == 1)
    return out_bs


def make_token_weights(config: Config, first_of: tuple[int, ...] = (), all_of: tuple[int, ...] = ()) -> TokenWeights:
  """Those of a config, with the ids of its objective's `mask_first` and `mask_all`."""
  c = config.objective
  share = c.select_share if c.select_by else 1.0
  return TokenWeights(first_of, all_of, c.position_slope, share, config.horizon.build().reached)


def selected(kept_b: jax.Array, share: float) -> jax.Array:
  """How many of so many tokens a share is, rounded up: int32, at least one where there is one."""
  return jnp.ceil(kept_b * share - 1e-4).astype(jnp.int32)
