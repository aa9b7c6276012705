"""The ladder that takes a schedule through in the least time, by dynamic programming over its horizons.

Rungs that are no horizon of the schedule only pad more, so an optimal ladder's rungs are among the horizons. Let the
horizons be h_1 < ... < h_n, and ladders end at h_j:

    best(j) = min over i < j of  best(i) + compile(h_j) + steps of h_(i+1) .. h_j at width h_j

    horizons   h_1 ... h_i | h_(i+1) ......... h_j |
               best(i)     | one rung, width h_j   |

Where a compiler works ahead, a ladder's time is two numbers: when its last steps are done, and when its last compile
is. Neither can make a later rung start earlier by being larger, so for each j all pairs are kept of which no other is
smaller in both, and which could still beat the ladder found above if nothing more were padded; the smallest first
number at h_n is the optimum (for horizons that never shrink).
"""

import functools
import math

import numpy as np

from opd_jax.horizon.costs import Costs, Workload, default_costs, ladder_seconds
from opd_jax.horizon.schedules import Horizon

# Rungs to choose from; a schedule with more horizons is padded by at most so small a part of them more. Ahead, each
# has many states.
_CANDIDATES, _CANDIDATES_AHEAD = 512, 64


def best_ladder(workload: Workload, costs: Costs, *, ahead: bool = False) -> tuple[int, ...]:
  """The ascending rungs with the least total seconds for `workload`; the last is its longest horizon.

  Args:
    workload: up to 512 different horizons (ahead: 64) are all candidates, which is exact; of more, so many evenly
      spread ones.
    costs: of widths and turns.
    ahead: minimise `Seconds.ahead`, the time with a compiler in the background, and not `Seconds.total`.
  """
  if not ahead:
    return _search(workload, costs, _ends(len(workload.horizons), _CANDIDATES), math.inf, ahead=False)
  ends = _ends(len(workload.horizons), _CANDIDATES_AHEAD)
  first = _search(workload, costs, ends, math.inf, ahead=False)
  most = ladder_seconds(first, workload, costs).ahead * (1 + 1e-9)
  return _search(workload, costs, ends, most, ahead=True)


def _ends(n: int, most: int) -> list[int]:
  """Indices of at most so many of `n` horizons, evenly spread, the last among them."""
  count = min(n, most)
  return [math.ceil((k + 1) * n / count) - 1 for k in range(count)]


def _search(workload: Workload, costs: Costs, ends: list[int], most: float, *, ahead: bool) -> tuple[int, ...]:
  """The best ladder with rungs at `ends`, which takes no more than `most` seconds."""
  steps, turns = np.array(workload.steps), np.array(workload.turns)
  taken_at = [steps[: end + 1] * costs.step(workload.horizons[end], turns[: end + 1]) for end in ends]
  least = np.full(len(steps) + 1, np.inf)  # of the steps at each horizon, in whichever rung is best for them
  least[-1] = 0.0
  for taken in taken_at:
    least[: len(taken)] = np.minimum(least[: len(taken)], taken)
  rest = np.cumsum(least[::-1])[::-1]  # rest[i]: at the least, for horizon i and all later ones
  # fronts[j]: (done, compiled, rungs) of the ladders that end at candidate j - 1; fronts[0]: of the one without rungs.
  fronts: list[list[tuple[float, float, tuple]]] = [[(0.0, 0.0, ())]]
  for end, taken in zip(ends, taken_at):
    width = workload.horizons[end]
    compile_seconds = costs.compile(width)
    through = np.concatenate([[0.0], np.cumsum(taken)])
    reached = []
    for i, front in enumerate(fronts):
      since = float(through[-1] - through[ends[i - 1] + 1 if i else 0])
      for done, compiled, rungs in front:
        compiled += compile_seconds
        done = (max(done, compiled) if ahead else done + compile_seconds) + since
        if done + rest[end + 1] <= most:
          reached.append((done, compiled if ahead else 0.0, (rungs, width)))
    fronts.append(_undominated(reached))
  ladder, rungs = [], fronts[-1][0][2]
  while rungs:
    rungs, width = rungs
    ladder.append(width)
  return tuple(reversed(ladder))


def _undominated(states: list[tuple[float, float, tuple]]) -> list[tuple[float, float, tuple]]:
  """Those of which no other is at most as large in both numbers; ascending by the first."""
  kept: list[tuple[float, float, tuple]] = []
  for state in sorted(states, key=lambda state: state[:2]):
    if not kept or state[1] < kept[-1][1]:
      kept.append(state)
  return kept


@functools.lru_cache(maxsize=8)
def auto_ladder(horizon: Horizon, steps: int, prompt: int, ahead: bool = False) -> tuple[int, ...]:
  """The best ladder of a schedule under `default_costs`, with the schedule's maximum as the last rung.

  Args:
    horizon: a function of the step alone; every row is taken to reach it.
    steps: of the run.
    prompt: columns of the prompt, in tokens.
    ahead: a compiler works in the background, so that more rungs pay.
  """
  workload = Workload.of(horizon, steps)
  ladder = best_ladder(workload, default_costs(workload.horizons[-1], prompt), ahead=ahead)
  return ladder if ladder[-1] == horizon.maximum else (*ladder, horizon.maximum)
