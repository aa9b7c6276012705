"""From the costs of a few widths to those of all: least squares on what the costs grow with, no weight below zero.

    compile   1, x, s         x = prompt + width: the columns of a program; s = stages, of which each is compiled
    rollout   1, x, n, a      n = turns, each of which reads the weights; a = cache slots that they attend, in all
    update    1, x, x^2       attention

Each residual counts relative to its value, so that a small width is fitted as well as a large one.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from opd_jax.horizon import Costs
from opd_jax.planning.width_costs import WidthCost
from opd_jax.rollout.sampler import stage_widths


@dataclasses.dataclass(frozen=True)
class Fit:
  """One cost as a weighted sum of its terms.

  Attributes:
    weights: of the terms, in seconds, none below zero.
    error: |fitted / known - 1|, the mean over widths that were left out of the fit in turn; None with two or fewer.
    worst: the largest of these.
  """

  weights: np.ndarray
  error: float | None
  worst: float | None


@dataclasses.dataclass(frozen=True)
class CostFit:
  """Costs of any width, and how far to trust them.

  Attributes:
    costs: of a rung's programs as they are: the slots that a rollout attends grow in stages.
    whole: of a rung whose rollout attends its whole cache at every turn; compiled as fast.
    fits: of "compile", "rollout", "update".
  """

  costs: Costs
  whole: Costs
  fits: dict[str, Fit]


def fit_costs(known: Sequence[WidthCost], prompt: int) -> CostFit:
  """Fits the costs of every width to those of `known`, of which at least one must fit its chip.

  Args:
    known: costs of different widths. Those that do not fit the chip are left out where they have no seconds.
    prompt: columns of the prompt, in tokens.
  """

  def whole(width: int, turns: np.ndarray | float) -> np.ndarray | float:
    return turns * stage_widths(prompt, width)[-1]

  def staged(width: int, turns: np.ndarray | float) -> np.ndarray | float:
    stages = stage_widths(prompt, width)
    starts = (0, *(stage - prompt + 1 for stage in stages))  # the first turn of each
    return sum(np.clip(turns - start, 0, end - start) * stage for start, end, stage in zip(starts, starts[1:], stages))

  def compiling(width):
    return [1.0, prompt + width, len(stage_widths(prompt, width))]

  def writing(width, turns, attended):
    return [1.0, prompt + width, turns, attended(width, turns)]

  def training(width):
    return [1.0, prompt + width, (prompt + width) ** 2]

  fits = {
    "compile": _fit([(cost.width, compiling(cost.width), cost.compile_seconds) for cost in known if cost.fits]),
    "rollout": _fit(
      [
        (cost.width, writing(cost.width, turns, whole if cost.widest_stage else staged), seconds)
        for cost in known
        for turns, seconds in cost.rollout_seconds.items()
      ]
    ),
    "update": _fit(
      [(cost.width, training(cost.width), cost.update_seconds) for cost in known if cost.update_seconds is not None]
    ),
  }

  def rollout(attended, width, turns):
    return sum(weight * term for weight, term in zip(fits["rollout"].weights, writing(width, turns, attended)))

  costs = Costs(
    compile=lambda width: float(fits["compile"].weights @ compiling(width)),
    rollout=functools.partial(rollout, staged),
    update=lambda width: float(fits["update"].weights @ training(width)),
  )
  return CostFit(costs, dataclasses.replace(costs, rollout=functools.partial(rollout, whole)), fits)


def _fit(rows: Sequence[tuple[int, list[float], float]]) -> Fit:
  """`rows`: (width, terms, seconds). Widths are left out one by one to see how well the others foretell them."""
  widths, terms, seconds = (np.array(column, np.float64) for column in zip(*rows))
  weights = _solve(terms, seconds)
  errors = []
  for width in np.unique(widths):
    rest = widths != width
    if len(np.unique(widths[rest])) >= 2:
      errors += list(abs(terms[~rest] @ _solve(terms[rest], seconds[rest]) / seconds[~rest] - 1))
  return Fit(weights, float(np.mean(errors)), float(np.max(errors))) if errors else Fit(weights, None, None)


def _solve(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
  relative = terms / seconds[:, None]
  scale = np.maximum(relative.max(0), 1e-300)  # terms differ by many orders of magnitude
  return nnls(relative / scale, np.ones(len(seconds)))[0] / scale
