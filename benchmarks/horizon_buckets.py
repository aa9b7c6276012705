r"""Policies for horizon.buckets side by side, for OPD, POPD and TOPD: tables, JSON and a picture.

python -m benchmarks.horizon_buckets --config=configs/quickstart.py --config.steps=100 --config.horizon.every=10
python -m benchmarks.horizon_buckets --config=configs/quickstart.py --config.steps=1000 --config.horizon.every=100 \
  --real_runs=false --out=benchmarks/results/horizon_buckets_cpu_long
python -m benchmarks.horizon_buckets --config=configs/qwen3_1p7b_topd.py:v5e-16 --topology=v5e:4x4 \
  --out=benchmarks/results/horizon_buckets_v5e_4x4 --config.horizon.kind=progressive --config.horizon.max=15360 \
  --config.horizon.start=1536 --config.horizon.increment=1536 --config.horizon.every=20 --config.horizon.buckets=auto \
  --config.optimizer.micro_batches=8

At most --widths=12 are compiled and measured (on a TPU that is not here: predicted by its compiler); every policy is
added up from these (`opd_jax.planning.comparison`). On a CPU three policies of the run's own schedule are then run,
as `train` runs them, and stand beside what was added up. A CPU's numbers are CPU-seconds of one pinned thread.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags
from rich.console import Console

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.distributed.topologies import find_topology, use_cpu
from opd_jax.planning import Comparison, compare_buckets
from opd_jax.telemetry.record import read_run

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_OUT = flags.DEFINE_string("out", "benchmarks/results/horizon_buckets_cpu", "Written as OUT.txt, OUT.json, OUT.png.")
_REAL_RUNS = flags.DEFINE_bool("real_runs", True, "On a CPU: also train with some of the policies.")
_WIDTHS = flags.DEFINE_integer("widths", 12, "So many are compiled at most.", lower_bound=2)
_TOPOLOGY = flags.DEFINE_string("topology", "cpu:1", "Machine, as for opd_jax.plan.")

REAL = ("exact lengths", "powers_of_two", "auto")  # the policies that are run for real on a CPU
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
_CUT = 2.2  # times the oracle: no bar is drawn longer
COLOURS = {"rollout": "#4c566a", "update": "#2a9d8f", "padding": "#f2b8a8", "compile": "#e9a820"}


@dataclasses.dataclass(frozen=True)
class RealRun:
  """A run of `train` and what the comparison had added up for it; CPU-seconds."""

  policy: str
  rungs: tuple[int, ...]
  added_up: float
  compile_seconds: float
  step_seconds: float

  @property
  def total(self) -> float:
    return self.compile_seconds + self.step_seconds


def run_for_real(comparison: Comparison, config_flags: Sequence[str]) -> list[RealRun]:
  """Trains with some policies' ladders, one after the other, nothing cached and nothing evaluated."""
  schedule = next(s for s in comparison.schedules if s.name == comparison.own)
  runs = []
  for outcome in schedule.outcomes:
    if outcome.policy.name not in REAL:
      continue
    rungs = sorted({*outcome.rungs, comparison.config.horizon.max})
    print(f"training with buckets {rungs}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, "-m", "opd_jax.train", *config_flags, f"--workdir={folder}"]
      command += [f"--config.horizon.buckets={','.join(map(str, rungs))}", "--config.eval.path="]
      command += [f"--config.checkpoint.every={comparison.config.steps}", "--config.log.tensorboard=False"]
      command.append("--config.horizon.compile_ahead=False")  # so that the two can be told apart
      subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
      rows = read_run(folder).metrics
    compiling, stepping = (sum(row[name] for row in rows) for name in ("cpu_seconds_compile", "cpu_seconds"))
    runs.append(RealRun(outcome.policy.name, outcome.rungs, outcome.total, compiling, stepping))
  return runs


def show_runs(runs: Sequence[RealRun], console: Console) -> None:
  for run in runs:
    console.print(
      f"{run.policy}, run for real: {run.total:.1f} s, of which compiling {run.compile_seconds:.1f}; "
      f"added up were {run.added_up:.1f} ({run.added_up / run.total - 1:+.1%})",
      highlight=False,
      soft_wrap=True,
    )


def draw(answer: dict[str, Any], own: str, runs: Sequence[RealRun], path: Path) -> None:
  """A panel a schedule, a bar a policy: what every run must do, then what padding costs, then what compiling costs.

  `own`: name of the schedule that `runs` were run with.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt
  from matplotlib.lines import Line2D
  from matplotlib.patches import Patch

  # Schedules whose horizon moves first: there the choice is hard.
  schedules = sorted(answer["schedules"], key=lambda s: (-len(s["horizons"]), s["horizons"][-1]))
  unit, name = (3600, "hours") if max(s["oracle"]["total"] for s in schedules) > 2 * 3600 else (1, "seconds")
  rows = -(-len(schedules) // 2)
  figure, grid = plt.subplots(rows, 2, figsize=(12, 3.5 * rows + 0.4), layout="constrained", squeeze=False)
  for ax in grid.flat[len(schedules) :]:
    ax.set_visible(False)
  for ax, schedule in zip(grid.flat, schedules):
    real = {run.policy: run for run in runs if schedule["name"] == own}
    _draw_schedule(ax, schedule, answer["steps"], real, unit)
  for ax in grid[:, 1]:
    ax.set_yticklabels([])
  for ax in grid.flat[max(0, len(schedules) - 2) : len(schedules)]:
    ax.set_xlabel(f"{name} of one CPU core, measured" if answer["topology"].startswith("cpu") else f"{name}, predicted")
  handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
  handles.append(Line2D([], [], color="#222222", linestyle=":", label="oracle"))
  if runs:
    handles.append(Line2D([], [], color="#b02a1a", marker="D", linestyle="", markersize=5, label="run for real"))
  figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _draw_schedule(ax: "Axes", schedule: dict[str, Any], steps: int, real: dict[str, RealRun], unit: float) -> None:
  oracle = schedule["oracle"]
  policies = [policy for policy in schedule["policies"] if policy["policy"] != "auto, compile ahead"]
  # A bar that is much too long would make all others look the same: it is cut, and its end says so.
  end = min(max(1.35 * oracle["total"], *(policy["total"] for policy in policies)), _CUT * oracle["total"]) / unit
  for row, policy in enumerate(policies):
    useful = {name: min(policy[f"{name}_seconds"], oracle[f"{name}_seconds"]) for name in ("rollout", "update")}
    padding = policy["rollout_seconds"] + policy["update_seconds"] - sum(useful.values())
    left = 0.0
    for name, seconds in {**useful, "padding": padding, "compile": policy["compile_seconds"]}.items():
      ax.barh(row, seconds / unit, left=left / unit, height=0.72, color=COLOURS[name])
      left += seconds
    text = f"{policy['regret']:+,.0%},  {policy['programs']} programs"
    cut = left / unit > 1.001 * end
    beyond = max(left, real[policy["policy"]].total + 0.01 * end * unit if policy["policy"] in real else 0.0) / unit
    at, side = (0.985 * end, "right") if cut else (beyond + 0.012 * end, "left")
    text += f",  {left / unit:,.3g} {'h' if unit > 1 else 's'} »" if cut else ""
    behind = None if cut else {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    ax.text(at, row, text, va="center", ha=side, fontsize=8.5, zorder=4, bbox=behind)
    if policy["policy"] in real:
      ax.plot(real[policy["policy"]].total / unit, row, marker="D", color="#b02a1a", markersize=5, zorder=5)
  ax.axvline(oracle["total"] / unit, color="#222222", linestyle=":", linewidth=1.2)
  ax.set_yticks(range(len(policies)), [policy["policy"] for policy in policies])
  for label, policy in zip(ax.get_yticklabels(), policies):
    label.set_fontweight("bold" if policy["policy"] == "auto" else "normal")
  ax.invert_yaxis()
  ax.set_xlim(0, end)
  ax.spines[["top", "right", "left"]].set_visible(False)
  ax.tick_params(axis="y", length=0)
  horizons = schedule["horizons"]
  reach = f"{horizons[0]} → {horizons[-1]} tokens" if len(horizons) > 1 else f"{horizons[0]} tokens"
  ax.set_title(f"{schedule['name']}: {reach}, {steps} steps", loc="left", fontsize=11, fontweight="bold")


def main(config: Config) -> None:
  topology, out = find_topology(_TOPOLOGY.value), Path(_OUT.value)
  on_cpu = topology.hertz is None
  os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
  if on_cpu:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    if hasattr(os, "sched_setaffinity"):
      os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  use_cpu(_TOPOLOGY.value)
  jax.config.update("jax_enable_compilation_cache", False)

  def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

  comparison = compare_buckets(config, topology, say, most_widths=_WIDTHS.value)
  spec, overrides, _ = command_line.split(sys.argv[1:])
  runs = run_for_real(comparison, [f"--config={spec}", *overrides]) if on_cpu and _REAL_RUNS.value else []

  out.parent.mkdir(parents=True, exist_ok=True)
  console = Console(width=120, record=True)
  comparison.show(console)
  show_runs(runs, console)
  answer = comparison.to_json()
  saved = answer | {"real_runs": [dataclasses.asdict(run) | {"total": run.total} for run in runs]}
  out.with_suffix(".txt").write_text(console.export_text())
  out.with_suffix(".json").write_text(json.dumps(saved, indent=1) + "\n")
  draw(answer, comparison.own, runs, out.with_suffix(".png"))
  print(f"written to {out}.txt, .json, .png")


if __name__ == "__main__":
  command_line.run(main)
