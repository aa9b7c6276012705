"""What a ladder costs for a schedule: seconds that compile, seconds that write, seconds that train.

    total = sum over rungs used     compile(width)
          + sum over steps          rollout(width, turns) + update(width)      width: the smallest rung >= H

A rollout turns once for each token of its longest row, whatever its width; an update reads its whole width. So padding
costs in the update, and in the rollout only as far as attention reads a wider cache.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from opd_jax.horizon.ladder import bucket_for
from opd_jax.horizon.schedules import Horizon


@dataclasses.dataclass(frozen=True)
class Lengths:
  """How long completions get where no horizon cuts them.

  Attributes:
    observed: lengths of completions that ended on their own, in tokens, as a sample of all; empty: none ever ends
      before its horizon.
    rows: completions of a step, taken as independent draws: the longest of them is how far a rollout turns.
  """

  observed: tuple[int, ...] = ()
  rows: int = 1

  def turns(self, horizons: np.ndarray) -> np.ndarray:
    """Expected length of a step's longest row, in tokens, at each of `horizons` (float64)."""
    return self._mean(horizons, self.rows)

  def tokens(self, horizons: np.ndarray) -> np.ndarray:
    """Expected length of one row, in tokens, at each of `horizons` (float64)."""
    return self._mean(horizons, 1)

  def _mean(self, horizons: np.ndarray, draws: int) -> np.ndarray:
    """E[min(H, longest of `draws`)]: that the longest is at most x has the probability F(x)^draws."""
    if not self.observed:
      return np.asarray(horizons, np.float64)
    lengths, counts = np.unique(self.observed, return_counts=True)
    below = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]) ** draws
    return np.minimum(np.asarray(horizons)[:, None], lengths) @ np.diff(below)


@dataclasses.dataclass(frozen=True)
class Workload:
  """A schedule, summed up: what each of its horizons asks for. Ascending by horizon.

  Attributes:
    horizons: the different horizons of the schedule's steps.
    steps: how many steps run at each.
    turns: tokens of the longest row of such a step.
    tokens: mean tokens of a row of such a step.
  """

  horizons: tuple[int, ...]
  steps: tuple[int, ...]
  turns: tuple[float, ...]
  tokens: tuple[float, ...]

  @classmethod
  def of(cls, horizon: Horizon, steps: int, lengths: Lengths | None = None) -> "Workload":
    """Of the first `steps` steps of a schedule. Without `lengths` every row reaches its horizon."""
    lengths = lengths or Lengths()
    counted = sorted(Counter(horizon(step) for step in range(steps)).items())
    horizons = np.array([H for H, _ in counted])
    return cls(
      tuple(H for H, _ in counted),
      tuple(count for _, count in counted),
      tuple(lengths.turns(horizons).tolist()),
      tuple(lengths.tokens(horizons).tolist()),
    )


@dataclasses.dataclass(frozen=True)
class Costs:
  """Seconds (or any other unit of time) of a rung's programs.

  Attributes:
    compile: width -> seconds to compile both programs of that width.
    rollout: (width, turns as an array) -> seconds of a rollout of that width that turns so often.
    update: width -> seconds of an update.
  """

  compile: Callable[[int], float]
  rollout: Callable[[int, np.ndarray], np.ndarray]
  update: Callable[[int], float]

  def step(self, width: int, turns: Sequence[float]) -> np.ndarray:
    """Seconds of one step at `width` for each number of turns."""
    return self.rollout(width, np.asarray(turns, np.float64)) + self.update(width)


@dataclasses.dataclass(frozen=True)
class Seconds:
  """Where a ladder's time goes.

  Attributes:
    compile, rollout, update: summed over the run.
    ahead: the whole run where a compiler works ahead in the background and takes nothing from training, as on an
      accelerator's host: the wait for the first rung, and for any that is not ready when its steps come. The horizon
      must not shrink during the run.
  """

  compile: float
  rollout: float
  update: float
  ahead: float

  @property
  def total(self) -> float:
    """The whole run where each compile stops it."""
    return self.compile + self.rollout + self.update


def used_rungs(ladder: Sequence[int], workload: Workload) -> tuple[int, ...]:
  """The rungs that some horizon of the workload runs in, ascending: those that are compiled."""
  return tuple(sorted({bucket_for(H, ladder) for H in workload.horizons}))


def ladder_seconds(ladder: Sequence[int], workload: Workload, costs: Costs) -> Seconds:
  """What a run takes with `ladder`, which must hold the workload's longest horizon."""
  compile_seconds = rollout = update = clock = compiled = 0.0
  for width in used_rungs(ladder, workload):
    at = [i for i, H in enumerate(workload.horizons) if bucket_for(H, ladder) == width]
    steps = np.array([workload.steps[i] for i in at])
    wrote = float(steps @ costs.rollout(width, np.array([workload.turns[i] for i in at])))
    trained = float(steps.sum() * costs.update(width))
    compiled += costs.compile(width)
    clock = max(clock, compiled) + wrote + trained
    rollout, update, compile_seconds = rollout + wrote, update + trained, compiled
  return Seconds(compile_seconds, rollout, update, clock)


def default_costs(maximum: int, prompt: int) -> Costs:
  """Costs where nothing was measured: arithmetic with attention's quadratic term, compiling relative to it.

  The unit is one token's forward pass through the student's layers. From Qwen3-1.7B <- Qwen3-8B compiled for v5e:4x4
  (64 rows of 512 + 1024 tokens): attention's products are as many as the layers' own at a context of about 16,384
  tokens; an update (forward and backward of the student, forward of a teacher of its size) is 4 forward passes of each
  position; a decode step takes as long as 4 positions of an update. Compiling both programs of a rung takes as long as
  16 steps at the longest horizon, but hardly longer for a wider rung, so never more than 16 steps at 1,024 tokens: 13
  there (120 s), and 20 of the embedded task on a CPU.

  Args:
    maximum: the longest horizon, in tokens.
    prompt: columns of the prompt, in tokens.
  """
  equal, trained, decoded = 16_384, 4.0, 16.0

  def attended(tokens: float) -> float:
    return 1 + tokens / equal

  def rollout(width: int, turns: np.ndarray) -> np.ndarray:
    return prompt * attended(prompt) + decoded * turns * attended(prompt + width)

  def update(width: int) -> float:
    return trained * (prompt + width) * attended(prompt + width)

  typical = min(maximum, 1024)
  once = 16 * (float(rollout(typical, np.float64(typical))) + update(typical))
  return Costs(lambda width: once, rollout, update)
