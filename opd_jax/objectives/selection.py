"""A share of each response's tokens, chosen before the head is multiplied with them: what is not chosen costs nothing.

score_bs    .9  .1  .4  .8  .2  _      a completion of five tokens, share 0.4: two of them
chosen       0   3                     columns [B, K] with K = ceil(share * S); fewer fill up with weight 0
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.objectives.token_weights import selected

ENTROPY = "entropy"


@dataclasses.dataclass(frozen=True)
class Selection:
  """The tokens of a response with the largest scores.

  Attributes:
    by: what a token's score is: `entropy` of the student when it was written, known from the rollout; or `divergence`,
      its KL(student || teacher), which takes a forward pass of both heads over all tokens and saves the gradients'.
    share: of the response's tokens that count, above 0 and at most 1, rounded up.
  """

  by: str
  share: float

  def columns(self, score_bs: jax.Array, weights_bs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 [B, K] columns, float32 [B, K] weights there, 0 past a row's share). Ties go to the earlier column."""
    counts_bs = weights_bs > 0
    few = int(-(-weights_bs.shape[1] * self.share // 1))
    _, columns_bk = jax.lax.top_k(jnp.where(counts_bs, score_bs, -jnp.inf), few)
    within_bk = jnp.arange(few) < selected(counts_bs.sum(axis=1), self.share)[:, None]
    return columns_bk, jnp.where(within_bk, jnp.take_along_axis(weights_bs, columns_bk, axis=1), 0.0)


def take_columns(array_bs: jax.Array, columns_bk: jax.Array) -> jax.Array:
  """[B, K, ...] of [B, S, ...]."""
  return jnp.take_along_axis(array_bs, columns_bk.reshape(*columns_bk.shape, *(1,) * (array_bs.ndim - 2)), axis=1)
