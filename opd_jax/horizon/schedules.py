"""How many tokens the student may write at a step: full, truncated (TOPD), progressive (POPD).

    tokens                     ________ full(T)            T at every step
      T |                 ____|
        |            ____|                                 progressive: start + increment * floor(step / every)
        |       ____|
      rT|______|______________________ truncated(T, rho)   ceil(rho * T) at every step
        +------------------------------ step

A horizon is a frozen object: `init() -> state`, `__call__(step, state) -> int`, `update(state, diagnostics) -> state`.
The schedules here are functions of the step alone and carry no state (`None`); an adaptive one would keep its own in
the checkpoint and read the diagnostics of the step before, which are replicated, so that every host agrees.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Horizon:
  """Base of all horizons. `maximum`: the most new tokens that any step may ask for."""

  maximum: int

  def init(self) -> Any:
    return None

  def __call__(self, step: int, state: Any = None) -> int:
    """The number of new tokens of step `step` (counted from 0)."""
    raise NotImplementedError

  def planned(self, step: int, since: int = 0, state: Any = None) -> tuple[int, ...]:
    """What `step` may ask for, as far as the state at step `since` lets know (None: of a run that begins): the same as
    there, and the most that it may have grown to."""
    del since, state
    return (self(step),)

  def update(self, state: Any, diagnostics: dict[str, float]) -> Any:
    """The next state, from the (replicated) diagnostics of the step that just ended."""
    del diagnostics
    return state

  def prefix(self, step: int, state: Any = None) -> int | None:
    """Where the step compares the gradient of the first so many tokens with the whole one: how many; else None."""
    del step, state
    return None

  @property
  def reached(self) -> tuple[tuple[int, float], ...]:
    """(length, probability that a step's horizon is at least that) where horizons are drawn; else empty."""
    return ()

  def distinct(self, steps: int) -> Iterator[int]:
    """The different horizons of steps 0 .. steps - 1, in the order in which they come."""
    seen = set()
    for step in range(steps):
      length = self(step)
      if length not in seen:
        seen.add(length)
        yield length


@dataclasses.dataclass(frozen=True)
class Constant(Horizon):
  """The same horizon at every step."""

  length: int

  def __call__(self, step: int, state: Any = None) -> int:
    return self.length


@dataclasses.dataclass(frozen=True)
class Progressive(Horizon):
  """POPD (arXiv 2605.31490, section 1.3 of our notes): H_k = min(T, H_0 + dH * floor(k / dk))."""

  start: int
  increment: int
  every: int

  def __call__(self, step: int, state: Any = None) -> int:
    return min(self.maximum, self.start + self.increment * (step // self.every))


def full(T: int) -> Horizon:
  """Plain OPD: all of the `T` new tokens at every step."""
  return Constant(_positive("T", T), T)


def truncated(T: int, rho: float) -> Horizon:
  """TOPD: the first `ceil(rho * T)` tokens at every step, 0 < rho <= 1."""
  _positive("T", T)
  if not 0 < rho <= 1:
    raise ValueError(f"rho is {rho}: it must be above 0 and at most 1")
  # 0.1 * 30 is 3.0000000000000004 in binary; the rounding keeps ceil from making that 4.
  return Constant(T, max(1, math.ceil(round(rho * T, 9))))


def progressive(T: int, start: int, increment: int, every: int) -> Horizon:
  """POPD: `start` tokens at first, `increment` more after each `every` steps, at most `T`."""
  _positive("T", T)
  for name, value in (("start", start), ("increment", increment), ("every", every)):
    _positive(name, value)
  if start > T:
    raise ValueError(f"start is {start}: it must be at most the maximum {T}")
  return Progressive(T, start, increment, every)


def _positive(name: str, value: int) -> int:
  if value < 1:
    raise ValueError(f"{name} is {value}: it must be at least 1")
  return value
