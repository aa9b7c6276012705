"""A horizon that is as short as the gradient allows, measured now and then at the full horizon.

    rungs     16      32      64      128 = T        cosine of the gradient of the first so many tokens with that of all
    probe 1   .62                                    below agreement 0.9: up to 32
    probe 2           .85                            up to 64
    probe 3                   .96                    64 is enough; the next probe looks below it
    probe 4           .88                            32 is not: 64 stays

Every `every` steps one step writes up to T and trains on all of it, and its gradient comes in two parts, before and
after a rung: so what the prefix alone would have done is known for one more backward pass, at that step alone. (Under
`objective.gamma` a token counts what comes after it, also past the rung.)

Short windows that delayed full rollouts audit are ADWIN's (arXiv 2605.28396); more of its rule we do not know. Ours are
the cosine of whole gradients, the threshold, one rung looked at and at most one moved at a probe, and no memory of
probes before the last. Both gradients are of one batch: the noise that they share raises the cosine of a small one.
"""

import dataclasses
import math
from typing import Any

from opd_jax.horizon.rungs import OnRungs, lengths_on
from opd_jax.horizon.schedules import Horizon


@dataclasses.dataclass(frozen=True)
class Probe(OnRungs):
  """The lowest rung whose gradient agrees with the full one, followed one rung at a probe.

  The state is {"rung", "looks"}: the rung in use, and the one that the next probe looks at: the same, or the one below
  it once that in use was found to agree. It is never the last, whose prefix is everything.

  Attributes:
    agreement: the least cosine, above 0 and at most 1.
  """

  agreement: float

  def init(self) -> dict[str, Any]:
    return {"rung": 0, "looks": 0}

  def __call__(self, step: int, state: Any = None) -> int:
    """`maximum` at a probe."""
    return super().__call__(step, state) if self.prefix(step) is None else self.maximum

  def planned(self, step: int, since: int = 0, state: Any = None) -> tuple[int, ...]:
    return super().planned(step, since, state) if self.prefix(step) is None else (self.maximum,)

  def prefix(self, step: int, state: Any = None) -> int | None:
    """Tokens of the rung that a probe looks at; which steps probe is known without a state."""
    if (step + 1) % self.every:
      return None
    return self.rungs[0 if state is None else state["looks"]]

  def update(self, state: dict[str, Any], diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Reads `probe_cosine`, which probes alone have; NaN, where there was no gradient at all, decides nothing."""
    cosine = diagnostics.get("probe_cosine", math.nan)
    if math.isnan(cosine):
      return state
    if cosine >= self.agreement:
      return {"rung": state["looks"], "looks": max(state["looks"] - 1, 0)}
    rung = state["looks"] + 1
    return {"rung": rung, "looks": min(rung, len(self.rungs) - 2)}


def probe(ladder: tuple[int, ...], T: int, start: int, every: int, agreement: float) -> Horizon:
  """From the first rung that holds `start` up to `T`.

  Raises ValueError for numbers out of range, and where there is but one rung: nothing to choose from.
  """
  lengths = lengths_on(ladder, T, start)
  if len(lengths) < 2:
    raise ValueError(
      f"no bucket from start {start} on is below the maximum {T}, and a probe compares with a shorter one: add one"
    )
  if every < 1:
    raise ValueError(f"every is {every}: it must be at least 1")
  if not 0 < agreement <= 1:
    raise ValueError(f"agreement is {agreement}: it must be above 0 and at most 1")
  return Probe(T, lengths, every, agreement)
