"""A horizon that grows when the signal at its far end is sound, instead of by a schedule.

    divergence a token, by eighths of the reach       far end / all before it

      | ▂▂▃▃▄▅▇█      not sound: the teacher reads prefixes that it would never write       2.4   stay
      | ▂▂▂▃▃▃▃▄      sound: the student has learnt to stay where the teacher knows its way  1.4   grow

The divergence grows with the position (arXiv 2605.31490, its reason to truncate at all). While the last eighth is far
above the rest, tokens beyond it would be worse still. The horizon moves up the ladder's rungs alone, so that each of
its lengths is a bucket of its own; it never shrinks.
"""

import dataclasses
import math
from typing import Any

from opd_jax.horizon.rungs import OnRungs, lengths_on
from opd_jax.horizon.schedules import Horizon


@dataclasses.dataclass(frozen=True)
class Reliability(OnRungs):
  """Grows by a rung once the last eighth's divergence is at most `ratio` times that of the rest, over `every` steps.

  The state is {"rung", "steps", "far", "near"}: the rung, steps seen on it since the last decision, and sums of the two
  divergences. A decision is taken after each `every` steps; then the sums begin again.

  Attributes:
    ratio: above 0.
  """

  ratio: float

  def init(self) -> dict[str, Any]:
    return {"rung": 0, "steps": 0, "far": 0.0, "near": 0.0}

  def update(self, state: dict[str, Any], diagnostics: dict[str, Any]) -> dict[str, Any]:
    """Reads `loss_by_position`, means over equal parts of the reach; NaN where a part held no token."""
    *before, last = diagnostics["loss_by_position"]
    known = [value for value in before if not math.isnan(value)]
    if math.isnan(last) or not known:  # completions shorter than the parts are many: they say nothing of a far end
      return state
    state = state | {
      "steps": state["steps"] + 1,
      "far": state["far"] + last,
      "near": state["near"] + sum(known) / len(known),
    }
    if state["steps"] < self.every:
      return state
    sound = state["far"] <= self.ratio * state["near"]
    return self.init() | {"rung": min(state["rung"] + sound, len(self.rungs) - 1)}


def reliability(rungs: tuple[int, ...], T: int, start: int, every: int, ratio: float) -> Horizon:
  """From the first rung that holds `start` up to `T`.

  Raises ValueError for numbers that are not positive or a start above `T`.
  """
  for name, value in (("every", every), ("ratio", ratio)):
    if value <= 0:
      raise ValueError(f"{name} is {value}: it must be above 0")
  return Reliability(T, lengths_on(rungs, T, start), every, ratio)
