"""Where the teacher's margin drops in a response: the tokens after that do not train.

    look          0      1      2      3      4     5          of `window` tokens each
    margin      -.31   -.24   -.28   -.90   -1.1               mean of log q(y) - log p(y) of the written tokens y
    fall          .    -.6     .1    3.4    2.9                below all looks before, in standard errors
    drops         .      0      0    2.5    4.9 > threshold
    kept_bs     1111   1111   1111   1111   1111   0000

On a context that the teacher would never have come to, its preferences among the student's words mean little (arXiv
2605.13643). The margin there is the teacher's over the student's top-K, by sentences, and a BIC test on the whole
response finds the change, which takes a pass over both heads before the one that has the gradient. Ours needs no pass
of its own, so it reads the one margin that is at hand, and must decide as it goes: a sum of drops (Page's, 1954), told
from the looks so far. The price is a delay: what was written between the change and its discovery has trained.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.config import Config
from opd_jax.telemetry.metrics import Metrics, Ratio

_SLACK = 0.5  # of a standard error that is no drop: half of the fall that is to be found
_LARGEST = 3.0  # that one look may add: one odd sentence is no change
_ROUNDING = 1e-3  # nats below which margins do not differ


class Past(NamedTuple):
  """What was seen of each row so far, [B] each: float32 but for the last, bool."""

  count_b: jax.Array  # tokens
  mean_b: jax.Array  # of their margins, nats
  spread_b: jax.Array  # sum of squared deviations from it
  drops_b: jax.Array
  found_b: jax.Array  # whether the drops were more than the threshold at some look


class Cut(NamedTuple):
  """Attributes:
  kept_bs: bool [B, S], true on the columns up to the cut.
  found_b: bool [B], whether there was one.
  """

  kept_bs: jax.Array
  found_b: jax.Array


@dataclasses.dataclass(frozen=True)
class MarginDrop:
  """Cuts each response after the look at which its drops exceed the threshold.

  Attributes:
    window: tokens of a look; those of a response's end that do not fill one are not looked at.
    threshold: standard errors, added up.
    rungs: lengths that the horizon may have, ascending, for `metrics`.
  """

  window: int
  threshold: float
  rungs: tuple[int, ...]

  def begin(self, rows: int) -> Past:
    return Past(*jnp.zeros((4, rows), jnp.float32), jnp.zeros(rows, bool))

  def look(self, past: Past, margin_bw: jax.Array, mask_bw: jax.Array) -> Past:
    """The past with one more look.

    Args:
      past: of the looks before.
      margin_bw: float32 [B, window], nats, finite also off the mask.
      mask_bw: bool [B, window], true on a completion's tokens.
    """
    before, more = past.count_b, margin_bw.shape[1]
    mean_b = margin_bw.mean(axis=1)
    spread_b = jnp.square(margin_bw - mean_b[:, None]).sum(axis=1)
    variance_b = past.spread_b / jnp.maximum(before, 1) ** 2 + spread_b / more**2  # of the difference of the two means
    fall_b = (past.mean_b - mean_b) / jnp.sqrt(variance_b + _ROUNDING**2)
    drops_b = jnp.maximum(past.drops_b + jnp.minimum(fall_b, _LARGEST) - _SLACK, 0.0)
    drops_b = jnp.where(before > 0, drops_b, 0.0)
    shift_b, count_b = mean_b - past.mean_b, before + more
    now = Past(
      count_b,
      past.mean_b + shift_b * more / count_b,
      past.spread_b + spread_b + shift_b**2 * before * more / count_b,
      drops_b,
      past.found_b | (drops_b > self.threshold),
    )
    return jax.tree.map(lambda new, old: jnp.where(mask_bw.all(axis=1), new, old), now, past)

  def metrics(self, cut: Cut, mask_bs: jax.Array, truncated_b: jax.Array) -> Metrics:
    """`cut`: the share of responses that were; `cut_tokens`: the share of tokens after a cut; `needed_by_rung`: for
    each rung the share of responses that need no more (`horizon.ChangePoint`).

    Args:
      cut: of some rows.
      mask_bs: bool [B, S], true on their completions' tokens.
      truncated_b: bool [B], true where the horizon came before end-of-sequence.
    """
    needed_b = (cut.kept_bs & mask_bs).sum(axis=1)
    known_b = cut.found_b | ~truncated_b
    return {
      "cut": Ratio.of(cut.found_b),
      "cut_tokens": Ratio.of(~cut.kept_bs, mask_bs),
      "needed_by_rung": Ratio.stack([Ratio.of(known_b & (needed_b <= rung)) for rung in self.rungs]),
    }


def make_margin_drop(config: Config) -> MarginDrop | None:
  """That of a config; None where its horizon is of another kind."""
  c = config.horizon
  return MarginDrop(c.window, c.threshold, c.build().rungs) if c.kind == "change_point" else None
