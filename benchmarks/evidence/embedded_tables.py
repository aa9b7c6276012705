"""Methods on the embedded tasks side by side: what each cost to get where OPD ends, and where it ended itself."""

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.evidence import figure
from benchmarks.evidence.embedded_runs import curve_of
from benchmarks.evidence.estimates import Estimate, difference, estimate
from benchmarks.evidence.study import Runs, by_method, markdown
from benchmarks.runs import cost_of_target

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Methods = dict[str, list[dict]]  # method -> its runs by seed

_HEAD = (
  "method", "before", "after", "lowest after its best", "tokens", "reach the target", "tokens to it, of OPD's",
  "CPU-s to it", "of OPD's",
)  # fmt: skip


def groups(runs: Runs) -> dict[tuple[str, int], Methods]:
  """Runs by (variant, length), `uniform` and short ones first."""
  found: dict[tuple[str, int], Methods] = {}
  for name, seeds in by_method(runs).items():
    variant, length, method = name.split(" ", 2)
    found.setdefault((variant, int(length)), {})[method] = seeds
  return dict(sorted(found.items(), key=lambda item: (item[0][0] != "uniform", item[0][1])))


def costs(methods: Methods, method: str) -> list[dict[str, float]]:
  """`cost_of_target` of each seed that reaches the target."""
  pairs = zip(methods[method], methods["OPD"], strict=True)
  return [cost for run, opd in pairs if (cost := cost_of_target(curve_of(run), curve_of(opd)))]


def gap(methods: Methods, method: str) -> Estimate:
  """Last accuracy less that of OPD, paired by seed."""
  return difference(*([run["accuracy"][-1] for run in methods[name]] for name in (method, "OPD")))


def tables(runs: Runs) -> str:
  """Markdown, one table a variant and length."""
  parts = []
  for (variant, length), methods in groups(runs).items():
    rows = [_row(methods, method) for method in methods]
    parts.append(f"`{variant}`, T = {length}\n\n{markdown(_HEAD, rows)}")
  return "\n\n".join(parts)


def _row(methods: Methods, method: str) -> list[str]:
  seeds, reached = methods[method], costs(methods, method)
  tokens, seconds, cpu = (
    estimate(cost[name] for cost in reached)
    for name in ("tokens_share_of_opd", "cpu_seconds_to_target", "cpu_share_of_opd")
  )
  lowest = (min(run["accuracy"][int(np.argmax(run["accuracy"])) :]) for run in seeds)
  return [
    method,
    f"{estimate(run['accuracy'][0] for run in seeds):.1%}",
    f"{estimate(run['accuracy'][-1] for run in seeds):.1%}",
    f"{estimate(lowest):.1%}",
    f"{estimate(run['tokens'][-1] for run in seeds):,.0f}",
    f"{len(reached)} of {len(seeds)}",
    f"{tokens:.2f}",
    f"{seconds:.1f}",
    f"{cpu:.2f}",
  ]


def draw_accuracy(ax: "Axes", title: str, methods: Methods) -> None:
  """Accuracy against generated tokens."""
  for (method, seeds), colour in zip(methods.items(), figure.COLOURS):
    tokens = np.mean([run["tokens"] for run in seeds], axis=0)
    figure.line(ax, tokens[1:], [[100 * a for a in run["accuracy"][1:]] for run in seeds], colour, method)
  ax.set(xscale="log", xlabel="generated tokens", ylim=(-2, 104), title=title)
