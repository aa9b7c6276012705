"""How far the student writes at each step, and the static buckets that those lengths compile to.

schedules   how many tokens at each step
adaptive, probe, change_point
            as many as the signal is sound for, as the gradient takes, as most responses teach; all move on `rungs`
random_prefix
            a number drawn at each step
ladder      which buckets, by a rule
costs       what a ladder costs for a schedule
search      the ladder that costs least
"""

from opd_jax.horizon.adaptive import Reliability, reliability
from opd_jax.horizon.change_point import ChangePoint, change_point
from opd_jax.horizon.costs import Costs, Lengths, Seconds, Workload, default_costs, ladder_seconds, used_rungs
from opd_jax.horizon.ladder import bucket_for, geometric, ladder_rule, linear, powers_of_two
from opd_jax.horizon.probe import Probe, probe
from opd_jax.horizon.random_prefix import RandomPrefix, random_prefix
from opd_jax.horizon.schedules import Constant, Horizon, Progressive, full, progressive, truncated
from opd_jax.horizon.search import auto_ladder, best_ladder

__all__ = [
  "ChangePoint",
  "Constant",
  "Costs",
  "Horizon",
  "Lengths",
  "Probe",
  "Progressive",
  "RandomPrefix",
  "Reliability",
  "Seconds",
  "Workload",
  "auto_ladder",
  "best_ladder",
  "bucket_for",
  "change_point",
  "default_costs",
  "full",
  "geometric",
  "ladder_rule",
  "ladder_seconds",
  "linear",
  "powers_of_two",
  "probe",
  "progressive",
  "random_prefix",
  "reliability",
  "truncated",
  "used_rungs",
]
