"""What horizons share that move along the bucket ladder, so that each of their lengths is a bucket of its own.

    ladder    8      16      32      64      128
    rungs             |-------|-------|-------|=100        start 16, T = 100: no further up than T

They begin at the lowest rung and go up by at most one at a decision, so what may be needed at a step is known before
the run, and compiled in that order.
"""

import dataclasses
from typing import Any

from opd_jax.horizon.schedules import Horizon


@dataclasses.dataclass(frozen=True)
class OnRungs(Horizon):
  """Base of them; their state holds the present one as "rung".

  Attributes:
    rungs: ascending; the last is `maximum`.
    every: steps between two decisions.
  """

  rungs: tuple[int, ...]
  every: int

  def __call__(self, step: int, state: Any = None) -> int:
    """Without a state, the most that it may be."""
    return self.planned(step)[-1] if state is None else self.rungs[state["rung"]]

  def planned(self, step: int, since: int = 0, state: Any = None) -> tuple[int, ...]:
    rung = 0 if state is None else state["rung"]
    most = min(rung + step // self.every - since // self.every, len(self.rungs) - 1)
    return self.rungs[rung], self.rungs[most]


def lengths_on(ladder: tuple[int, ...], T: int, start: int) -> tuple[int, ...]:
  """The rungs of a ladder from the first that holds `start` up to `T`, which is always the last.

  Raises ValueError for a start below 1 or above `T`.
  """
  if not 1 <= start <= T:
    raise ValueError(f"start is {start}: it must be from 1 to the maximum {T}")
  return tuple(sorted({min(rung, T) for rung in ladder if rung >= start} | {T}))
