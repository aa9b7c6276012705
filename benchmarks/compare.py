"""OPD, POPD and TOPD side by side on the embedded task, several seeds: table, JSON and curves.

python -m benchmarks.compare --out=benchmarks/results/compare [--seeds=3] [--workers=2]

Each run is one process on one core with one XLA thread, so that its CPU-seconds mean the same whatever runs beside it;
compiling is counted apart. Finished runs are kept under runs/compare and not run again. The student is evaluated after
every step up to step 15, then every fifth, on 256 problems, greedily, at the full horizon.
"""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from benchmarks.runs import SHARE, Curve, Job, cost_of_target, read_curve, train_all

_OUT = flags.DEFINE_string("out", "benchmarks/results/compare", "Table, JSON and picture are written as OUT.*")
_RUNS = flags.DEFINE_string("runs", "runs/compare", "Folder of the runs themselves.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds 0 .. N-1 of each method.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes at a time, one core each.")

VARIANTS = ("uniform", "late")
METHODS = {  # what differs from configs/quickstart.py, whose horizon is POPD's
  "OPD": ["--config.horizon.kind=full"],
  "POPD": [],
  "TOPD 0.25": ["--config.horizon.kind=truncated", "--config.horizon.rho=0.25"],
  "TOPD 0.1": ["--config.horizon.kind=truncated", "--config.horizon.rho=0.1"],
}


def job(variant: str, method: str, seed: int) -> Job:
  flags_of_run = (
    f"--config=configs/quickstart.py:{variant}@{seed}",  # another teacher and other students for every seed
    f"--config.seed={seed}",
    "--config.eval.every=5",
    "--config.eval.first=15",
    "--config.log.tensorboard=False",
    "--config.horizon.compile_ahead=False",  # or cpu_seconds would hold what is compiled in the background
    *METHODS[method],
  )
  return Job(f"{variant}-{method.replace(' ', '')}-seed{seed}", flags_of_run)


def summary(curves: dict[tuple[str, str, int], Curve], seeds: int) -> list[dict]:
  """One row a variant and method; every figure is (mean, standard error) over seeds, None where no seed got there."""
  rows = []
  for variant in VARIANTS:
    for method in METHODS:
      figures: dict[str, list[float]] = {}
      reached = 0
      for seed in range(seeds):
        curve, opd = curves[variant, method, seed], curves[variant, "OPD", seed]
        best = max(curve.accuracy)
        after_best = curve.accuracy[curve.accuracy.index(best) :]
        cost = cost_of_target(curve, opd)
        reached += bool(cost)
        values = {
          "before": curve.accuracy[0],
          "final": curve.accuracy[-1],
          "best": best,
          "lowest_after_best": min(after_best),
          "tokens": curve.tokens[-1],
          "cpu_seconds": curve.cpu_seconds[-1],
        } | cost
        for name, value in values.items():
          figures.setdefault(name, []).append(value)
      rows.append(
        {
          "variant": variant,
          "method": method,
          "seeds": seeds,
          "reached_target": reached,
          **{name: mean_and_error(values) for name, values in figures.items()},
        }
      )
  return rows


def mean_curve(curves: dict[tuple[str, str, int], Curve], variant: str, method: str, seeds: int) -> Curve:
  """The mean over seeds at each evaluated step: one run more, as it were, with less luck in it."""
  runs = [curves[variant, method, seed] for seed in range(seeds)]

  def mean(name: str) -> list[float]:
    return [statistics.fmean(values) for values in zip(*(getattr(run, name) for run in runs))]

  compile_seconds = statistics.fmean(run.cpu_seconds_compile for run in runs)
  teacher = statistics.fmean(run.teacher for run in runs)
  return Curve(runs[0].steps, mean("accuracy"), mean("tokens"), mean("cpu_seconds"), compile_seconds, teacher)


def mean_table(curves: dict[tuple[str, str, int], Curve], seeds: int) -> str:
  """Markdown: where the mean curve of each method reaches the target, which is taken from OPD's mean curve."""
  lines = ["| task | method | step | tokens | of OPD's | CPU-s | of OPD's |\n|" + "---|" * 7]
  for variant in VARIANTS:
    opd = mean_curve(curves, variant, "OPD", seeds)
    target = SHARE * opd.accuracy[-1]
    opd_at = opd.reached(target)
    for method in METHODS:
      curve = mean_curve(curves, variant, method, seeds)
      at = curve.reached(target)
      if at is None:
        lines.append(f"| {variant} | {method} | never | - | - | - | - |")
        continue
      tokens, seconds = curve.tokens[at], curve.cpu_seconds[at]
      lines.append(
        f"| {variant} | {method} | {curve.steps[at]} | {tokens:,.0f} | {tokens / opd.tokens[opd_at]:.2f} "
        f"| {seconds:.1f} | {seconds / opd.cpu_seconds[opd_at]:.2f} |"
      )
  return "\n".join(lines)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
  return statistics.fmean(values), error


def table(rows: list[dict]) -> str:
  """Markdown. Accuracies in percent, mean ± standard error."""
  head = (
    "| task | method | before | final | best | lowest after best | tokens | reached 95 % of OPD | tokens to it "
    "| of OPD's | CPU-s to it | of OPD's |\n|" + "---|" * 12
  )

  def cell(row: dict, name: str, scale: float = 1.0, digits: int = 0) -> str:
    if name not in row:
      return "-"
    mean, error = row[name]
    return f"{scale * mean:,.{digits}f} ± {scale * error:,.{digits}f}"

  lines = [
    f"| {row['variant']} | {row['method']} | {cell(row, 'before', 100, 1)} | {cell(row, 'final', 100, 1)} "
    f"| {cell(row, 'best', 100, 1)} | {cell(row, 'lowest_after_best', 100, 1)} | {cell(row, 'tokens')} "
    f"| {row['reached_target']} of {row['seeds']} | {cell(row, 'tokens_to_target')} "
    f"| {cell(row, 'tokens_share_of_opd', 1, 2)} | {cell(row, 'cpu_seconds_to_target', 1, 1)} "
    f"| {cell(row, 'cpu_share_of_opd', 1, 2)} |"
    for row in rows
  ]
  return "\n".join([head, *lines])


def draw(curves: dict[tuple[str, str, int], Curve], seeds: int, path: Path) -> None:
  """Accuracy against generated tokens: thin lines are seeds, the thick one their mean at each evaluated step."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, len(VARIANTS), figsize=(11, 4.2), sharey=True, layout="constrained")
  for ax, variant in zip(axes, VARIANTS):
    for color, method in zip(("#4c566a", "#2a9d8f", "#e76f51", "#e9a820"), METHODS):
      runs = [curves[variant, method, seed] for seed in range(seeds)]
      for run in runs:
        ax.plot(run.tokens[1:], [100 * a for a in run.accuracy[1:]], color=color, alpha=0.25, linewidth=0.8)
      mean = mean_curve(curves, variant, method, seeds)
      ax.plot(mean.tokens[1:], [100 * a for a in mean.accuracy[1:]], color=color, linewidth=2, label=method)
    before = statistics.fmean(curves[variant, "OPD", seed].accuracy[0] for seed in range(seeds))
    teacher = statistics.fmean(curves[variant, "OPD", seed].teacher for seed in range(seeds))
    for level, name in ((before, "student before"), (teacher, "teacher")):
      ax.axhline(100 * level, color="#888888", linewidth=0.8, linestyle=":")
      ax.annotate(name, (1.0, 100 * level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    titles = {"uniform": "the gap is the same everywhere", "late": "the gap comes late"}
    ax.set(xscale="log", title=f"{variant}: {titles[variant]}", xlabel="generated tokens", ylim=(-2, 104))
    ax.spines[["top", "right"]].set_visible(False)
  axes[0].set_ylabel("exact match of the whole chain, %")
  axes[0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.08))
  figure.savefig(path, dpi=150)


def main(_: Sequence[str]) -> None:
  root, seeds = Path(_RUNS.value), _SEEDS.value
  jobs = {(v, method, seed): job(v, method, seed) for v in VARIANTS for method in METHODS for seed in range(seeds)}

  def say(job: Job, folder: Path) -> None:
    print(f"{job.name}: {read_curve(folder).accuracy[-1]:.3f}", flush=True)

  train_all(list(jobs.values()), root, _WORKERS.value, say)
  curves = {key: read_curve(root / job.name) for key, job in jobs.items()}
  rows = summary(curves, seeds)
  text = f"Each seed against its own OPD run, mean ± standard error over {seeds} seeds:\n\n{table(rows)}\n\n"
  text += f"The mean curves against OPD's mean curve, where they reach 95 % of its end:\n\n{mean_table(curves, seeds)}"
  out = Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.with_suffix(".md").write_text(text + "\n")
  saved = {" ".join(map(str, key)): dataclasses.asdict(curve) for key, curve in curves.items()}
  out.with_suffix(".json").write_text(json.dumps({"summary": rows, "curves": saved}, indent=1) + "\n")
  draw(curves, seeds, out.with_suffix(".png"))
  print(text)
  print(f"written to {out}.md, .json, .png")


if __name__ == "__main__":
  app.run(main)
