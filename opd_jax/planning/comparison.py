"""The comparison of bucket policies: a few widths costed, then every policy and schedule added up from them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from opd_jax.config import Config
from opd_jax.distributed.topologies import Topology
from opd_jax.errors import InputError
from opd_jax.horizon import Lengths, Workload
from opd_jax.planning.cost_fit import CostFit, fit_costs
from opd_jax.planning.policies import (
  AUTO,
  AUTO_AHEAD,
  Oracle,
  Outcome,
  auto_policies,
  fixed_policies,
  needed_widths,
  run_oracle,
  run_policy,
  schedules,
  spread_widths,
)
from opd_jax.planning.subject import abstract_mesh, check_mesh, read_architectures
from opd_jax.planning.width_costs import WidthCost, cost_widths

_MOST_WIDTHS = 12


@dataclasses.dataclass(frozen=True)
class ScheduleOutcomes:
  """All policies for one schedule."""

  name: str
  workload: Workload
  oracle: Oracle
  outcomes: list[Outcome]

  def auto(self, ahead: bool) -> Outcome:
    """Of the ladder that `auto` takes; `ahead`: with a compiler in the background."""
    named = {outcome.policy.name: outcome for outcome in self.outcomes}
    return named.get(AUTO_AHEAD, named[AUTO]) if ahead else named[AUTO]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Bucket policies side by side.

  Attributes:
    topology: where the programs run.
    config: of the run.
    widths: the costs that everything is added up from.
    fit: the costs of any width.
    schedules: the outcomes, the run's own schedule among them.
    own: name of the run's own schedule.
  """

  topology: Topology
  config: Config
  widths: list[WidthCost]
  fit: CostFit
  schedules: list[ScheduleOutcomes]
  own: str

  @property
  def unit(self) -> str:
    here = self.topology.hertz is None
    return "CPU-seconds, measured" if here else "seconds of steps predicted by the compiler, CPU-seconds of compiling"

  @property
  def advice(self) -> str:
    own = next(s for s in self.schedules if s.name == self.own)
    rungs = ",".join(map(str, own.auto(self.config.horizon.compile_ahead).rungs))
    if int(rungs.rpartition(",")[2]) < self.config.horizon.max:
      rungs += f",{self.config.horizon.max}"
    return f"The best ladder for this run: --config.horizon.buckets={rungs}"

  def to_json(self) -> dict[str, Any]:
    return {
      "topology": self.topology.name,
      "unit": self.unit,
      "steps": self.config.steps,
      "max_prompt": self.config.rollout.max_prompt,
      "max_horizon": self.config.horizon.max,
      "widths": [dataclasses.asdict(cost) | {"fits": cost.fits} for cost in self.widths],
      "fit": {
        name: {"weights": fit.weights.tolist(), "error": fit.error, "worst": fit.worst}
        for name, fit in self.fit.fits.items()
      },
      "schedules": [
        {
          "name": s.name,
          "horizons": list(s.workload.horizons),
          "steps": list(s.workload.steps),
          "oracle": dataclasses.asdict(s.oracle) | {"total": s.oracle.total},
          "policies": [outcome.to_json() for outcome in s.outcomes],
        }
        for s in self.schedules
      ],
      "advice": self.advice,
    }

  def show(self, console: Console) -> None:
    """A table a schedule, how well the costs fit, and the ladder to take."""
    for schedule in self.schedules:
      console.print(_table(schedule, self.config))
    errors = [f"{name} {f.error:.1%} (worst {f.worst:.1%})" for name, f in self.fit.fits.items() if f.error is not None]
    console.print(
      "ahead s: the total where a compiler works in the background. padding: of all completion positions computed.\n"
      "fixed length and dynamic stop attend their whole cache at every turn; all others attend it in stages.",
      soft_wrap=True,
      style="dim",
    )
    taken = ", ".join(str(cost.width) for cost in self.widths)
    console.print(f"{self.topology.name}; {self.unit}. Known at widths {taken}; others from a fit.", soft_wrap=True)
    if errors:
      console.print(f"Error of the fit at widths that it has not seen: {', '.join(errors)}.", soft_wrap=True)
    large = [str(cost.width) for cost in self.widths if not cost.fits]
    if large:
      console.print(
        f"Too large for a chip, and extrapolated: widths {', '.join(large)}.", style="yellow", soft_wrap=True
      )
    console.print(self.advice, soft_wrap=True, highlight=False)


def compare_buckets(
  config: Config,
  topology: Topology,
  say: Callable[[str], None],
  observed: Sequence[int] = (),
  most_widths: int = _MOST_WIDTHS,
) -> Comparison:
  """Costs some widths on a machine, then adds up every policy for every schedule.

  Args:
    config: of the run. Its own schedule is compared too.
    topology: the machine. A TPU need not be here; on simulated CPU devices the programs are run.
    say: told what is being done.
    observed: lengths of completions that no horizon cut; empty: every row reaches its horizon.
    most_widths: so many are costed at most; others come from a fit, which says its error.

  Raises InputError for what `train` would refuse on that machine, or where not one width fits it.
  """
  models = read_architectures(config)
  check_mesh(config, models, abstract_mesh(config, topology.chips))
  lengths = Lengths(tuple(observed), config.rows)
  widths = spread_widths(needed_widths(config, lengths), most_widths)
  known = cost_widths(config, models, topology, widths, say)
  if not any(cost.fits for cost in known):
    raise InputError(f"not one of the widths {widths} fits a chip of {topology.name}: see the plan of this run")
  return add_up(config, topology, known, lengths)


def add_up(config: Config, topology: Topology, known: list[WidthCost], lengths: Lengths) -> Comparison:
  """The comparison, from the costs of some widths."""
  fit = fit_costs(known, config.rollout.max_prompt)
  compared = []
  named = schedules(config)
  for name, horizon in named.items():
    workload = Workload.of(horizon, config.steps, lengths)
    oracle = run_oracle(workload, fit.costs)
    policies = fixed_policies(config, workload) + auto_policies(workload, fit.costs)
    outcomes = [run_policy(policy, workload, fit, oracle) for policy in policies]
    compared.append(ScheduleOutcomes(name, workload, oracle, outcomes))
  own = next(name for name, horizon in named.items() if horizon == config.horizon.build())
  return Comparison(topology, config, known, fit, compared, own)


def _table(schedule: ScheduleOutcomes, config: Config) -> Table:
  shortest, longest = schedule.workload.horizons[0], schedule.workload.horizons[-1]
  reach = f"{shortest} to {longest}" if shortest < longest else f"{longest}"
  table = Table(title=f"{schedule.name}: {config.steps} steps, horizon {reach} tokens", title_justify="left")
  table.add_column("policy", no_wrap=True)
  for name in ("programs", "compile s", "rollout s", "update s", "padding", "total s", "regret", "ahead s"):
    table.add_column(name, justify="right")
  best = min(outcome.total for outcome in schedule.outcomes)
  for o in schedule.outcomes:
    seconds = (_short(value) for value in (o.compile_seconds, o.rollout_seconds, o.update_seconds))
    row = [o.policy.name, str(2 * len(o.rungs)), *seconds, f"{o.padding:.0%}", _short(o.total), _percent(o.regret)]
    table.add_row(*row, _short(o.ahead), style="bold" if o.total == best else None)
  o = schedule.oracle
  seconds = (_short(value) for value in (o.compile_seconds, o.rollout_seconds, o.update_seconds))
  table.add_row("oracle", "", *seconds, "0%", _short(o.total), "", _short(o.ahead), style="dim")
  return table


def _percent(share: float) -> str:
  return f"{share:+.1%}" if abs(share) < 1 else f"{share:+,.0%}"


def _short(seconds: float) -> str:
  return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
