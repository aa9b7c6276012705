"""Ways to give a horizon a static shape, side by side for one schedule, against an oracle.

    exact lengths          a program for every length: nothing is padded, everything is compiled
    maximum, fixed length  one program, whose rollout turns to the end of its width whatever the horizon
    maximum, dynamic stop  one program, whose rollout stops at the horizon; the update reads its whole width
    maximum, staged cache  the same, with slots attended that grow within the rollout; the two above attend all
    ladders                a program a rung; a rollout stops at the horizon and attends in stages
    oracle                 knew every length: every step at its longest row's width, and the one compile that no run
                           does without (of the widest program; with a compiler ahead, of the cheapest)

Every update reads the whole width of its program.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_jax.config import Config
from opd_jax.horizon import (
  Costs,
  Horizon,
  Lengths,
  Workload,
  best_ladder,
  bucket_for,
  geometric,
  ladder_seconds,
  linear,
  powers_of_two,
  truncated,
  used_rungs,
)
from opd_jax.planning.cost_fit import CostFit

AUTO, AUTO_AHEAD = "auto", "auto, compile ahead"
_PROGRAMS = 2  # of a rung: rollout and update


@dataclasses.dataclass(frozen=True)
class Policy:
  """A ladder, and what its rollouts do.

  Attributes:
    name: for a reader.
    ladder: ascending rungs.
    stops: a rollout ends with its longest row; if not, it turns to the end of its width.
    staged: the slots that it attends grow with it; if not, it attends all of its width at every turn.
  """

  name: str
  ladder: tuple[int, ...]
  stops: bool = True
  staged: bool = True


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A policy's run of a schedule.

  Attributes:
    policy: what was done.
    rungs: widths that were compiled.
    compile_seconds, rollout_seconds, update_seconds: summed over the run.
    padding: share of the completion positions that both programs computed and no row's completion holds.
    total: seconds where compiling stops training.
    ahead: seconds where a compiler works ahead in the background.
    regret, regret_ahead: of these two, over the oracle's, less 1.
  """

  policy: Policy
  rungs: tuple[int, ...]
  compile_seconds: float
  rollout_seconds: float
  update_seconds: float
  padding: float
  total: float
  ahead: float
  regret: float
  regret_ahead: float

  def to_json(self) -> dict[str, Any]:
    plain = dataclasses.asdict(self)
    del plain["policy"]
    return {"policy": self.policy.name, "programs": _PROGRAMS * len(self.rungs)} | plain


@dataclasses.dataclass(frozen=True)
class Oracle:
  """Seconds of a run that pads nothing; `compile_seconds` of its one compile, `ahead` with the least first wait."""

  compile_seconds: float
  rollout_seconds: float
  update_seconds: float
  ahead: float

  @property
  def total(self) -> float:
    return self.compile_seconds + self.rollout_seconds + self.update_seconds


def schedules(config: Config) -> dict[str, Horizon]:
  """The papers' four at the run's maximum, and the run's own in front where it is none of them."""
  h = config.horizon
  popd = dataclasses.replace(h, kind="progressive", start=min(h.start, h.max)).build()
  named = {"OPD": dataclasses.replace(h, kind="full").build(), "POPD": popd}
  named |= {f"TOPD {rho:g}": truncated(h.max, rho) for rho in (0.25, 0.1)}
  own = h.build()
  return named if own in named.values() else {"this run": own, **named}


def fixed_policies(config: Config, workload: Workload) -> list[Policy]:
  """Those that need no costs; the config's own ladder among them where it is one of rungs."""
  T = config.horizon.max
  eighth = math.ceil(T / 8)
  policies = [
    Policy("exact lengths", workload.horizons),
    Policy("maximum, fixed length", (T,), stops=False, staged=False),
    Policy("maximum, dynamic stop", (T,), staged=False),
    Policy("maximum, staged cache", (T,)),
    Policy("powers_of_two", powers_of_two(T)),
    Policy(f"linear({eighth})", linear(T, eighth)),
    Policy("geometric(1.5)", geometric(T, 1.5)),
  ]
  buckets = config.horizon.buckets
  if not isinstance(buckets, str) and buckets[-1] >= workload.horizons[-1]:
    policies.append(Policy("the config's", buckets))
  return policies


def auto_policies(workload: Workload, costs: Costs) -> list[Policy]:
  """The best ladder where compiles stop training, and the best where a compiler works ahead, if it is another."""
  here, ahead = (best_ladder(workload, costs, ahead=overlap) for overlap in (False, True))
  return [Policy(AUTO, here)] + ([Policy(AUTO_AHEAD, ahead)] if ahead != here else [])


def run_oracle(workload: Workload, costs: Costs) -> Oracle:
  """The run that no choice of buckets can beat under these costs."""
  widths = [max(1, math.ceil(turns)) for turns in workload.turns]
  steps = np.array(workload.steps)
  rollout = float(steps @ [float(costs.rollout(width, np.float64(n))) for width, n in zip(widths, workload.turns)])
  update = float(steps @ [costs.update(width) for width in widths])
  least = min(costs.compile(width) for width in widths)
  return Oracle(costs.compile(max(widths)), rollout, update, least + rollout + update)


def run_policy(policy: Policy, workload: Workload, fit: CostFit, oracle: Oracle) -> Outcome:
  """A policy's seconds and padding for a workload."""
  costs = fit.costs if policy.staged else fit.whole
  widths = [bucket_for(H, policy.ladder) for H in workload.horizons]
  turns = workload.turns if policy.stops else tuple(map(float, widths))
  seconds = ladder_seconds(policy.ladder, dataclasses.replace(workload, turns=turns), costs)
  return Outcome(
    policy=policy,
    rungs=used_rungs(policy.ladder, workload),
    compile_seconds=seconds.compile,
    rollout_seconds=seconds.rollout,
    update_seconds=seconds.update,
    padding=_padding(workload, widths, turns),
    total=seconds.total,
    ahead=seconds.ahead,
    regret=seconds.total / oracle.total - 1,
    regret_ahead=seconds.ahead / oracle.ahead - 1,
  )


def _padding(workload: Workload, widths: Sequence[int], turns: Sequence[float]) -> float:
  steps = np.array(workload.steps)
  computed = float(steps @ (np.array(turns) + np.array(widths)))
  return 1 - 2 * float(steps @ np.array(workload.tokens)) / computed


def needed_widths(config: Config, lengths: Lengths) -> list[int]:
  """Every width that some policy or the oracle uses for some schedule, ascending."""
  needed = set()
  for horizon in schedules(config).values():
    workload = Workload.of(horizon, config.steps, lengths)
    needed |= {max(1, math.ceil(turns)) for turns in workload.turns}
    for policy in fixed_policies(config, workload):
      needed |= set(used_rungs(policy.ladder, workload))
  return sorted(needed)


def spread_widths(widths: Sequence[int], most: int) -> list[int]:
  """At most `most` of `widths`, ascending: both ends, then always the one farthest, by ratio, from those taken."""
  taken = sorted({widths[0], widths[-1]})
  while len(taken) < min(most, len(widths)):
    rest = [width for width in widths if width not in taken]
    taken.append(max(rest, key=lambda width: min(abs(math.log(width / other)) for other in taken)))
  return sorted(taken)
