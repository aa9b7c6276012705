"""A horizon that reaches as far as most responses still teach.

    share of responses that need no more than       16      32      64      128 = T       holds 0.9
    over ten steps at 64                            .41     .92     .97                   down to 32
    over ten steps at 64                            .41     .70     .81                   up to 128

A response needs the tokens before the point where the teacher's margin drops (`objectives.MarginDrop`), or all of them
where it ended on its own. One that the horizon cut off while it still taught needs more than anybody has seen, and
counts for no rung: so a horizon that hides its own cuts from view grows, and only what was seen makes it shrink.
"""

import dataclasses
from typing import Any

from opd_jax.horizon.rungs import OnRungs, lengths_on
from opd_jax.horizon.schedules import Horizon

_ROUNDING = 1e-9  # ten times 0.9, added up, is 8.999999999999998


@dataclasses.dataclass(frozen=True)
class ChangePoint(OnRungs):
  """The lowest rung that holds a share `holds` of the responses; the next one up where none that was seen does.

  The state is {"rung", "steps", "held"}: the rung, steps seen on it since the last decision, and the sum over them of
  the shares that each rung holds. A decision is taken after each `every` steps; then the sums begin again.

  Attributes:
    holds: above 0 and at most 1.
  """

  holds: float

  def init(self) -> dict[str, Any]:
    return {"rung": 0, "steps": 0, "held": [0.0] * len(self.rungs)}

  def update(self, state: dict[str, Any], diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Reads `needed_by_rung`: for each rung the share of responses that need no more."""
    held = [before + share for before, share in zip(state["held"], diagnostics["needed_by_rung"], strict=True)]
    state = state | {"steps": state["steps"] + 1, "held": held}
    if state["steps"] < self.every:
      return state
    least = self.holds * self.every - _ROUNDING
    enough = [rung for rung in range(state["rung"] + 1) if held[rung] >= least]
    rung = enough[0] if enough else min(state["rung"] + 1, len(self.rungs) - 1)
    return self.init() | {"rung": rung}


def change_point(ladder: tuple[int, ...], T: int, start: int, every: int, holds: float) -> Horizon:
  """From the first rung that holds `start` up to `T`. Raises ValueError for numbers out of range."""
  if every < 1:
    raise ValueError(f"every is {every}: it must be at least 1")
  if not 0 < holds <= 1:
    raise ValueError(f"holds is {holds}: it must be above 0 and at most 1")
  return ChangePoint(T, lengths_on(ladder, T, start), every, holds)
