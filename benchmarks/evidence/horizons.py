"""OPD, POPD and TOPD at three maximum lengths: accuracy, tokens and CPU-seconds to 95 % of OPD's end; and where in a
response the two models differ, early and late in training."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import embedded_tables, figure
from benchmarks.evidence.embedded_runs import QUICK_RUNGS, RUNGS, STEPS, WHOLE, Setting, complete
from benchmarks.evidence.embedded_tables import Methods, costs, gap, groups
from benchmarks.evidence.estimates import Estimate, estimate
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.study import Finding, Order, Runs

TITLE = "The horizon"
COST = "an hour"
QUICK_SEEDS = 1
ABOUT = """\
`configs/quickstart.py` at three maximum lengths T: rollouts, training and answers end there. In `uniform` the student's
wrong rule shows at every position; in `late` from token 64 on, so that with T = 72, 84 and 97 the last ninth, quarter
and third of a response holds all that distinguishes the teacher. Every seed has a teacher and students of its own. POPD
grows by a tenth of T every second step; TOPD stays at a quarter or a tenth of T. A run is a process on one core;
CPU-seconds are without compiling, and other work shared the cores when these were taken. The target of a seed is 95 %
of its own OPD run's last accuracy."""

LENGTHS = {"uniform": (32, 64, WHOLE), "late": (72, 84, WHOLE)}
METHODS = {
  "OPD": ("--config.horizon.kind=full",),
  "POPD": (),
  "TOPD 0.25": ("--config.horizon.kind=truncated", "--config.horizon.rho=0.25"),
  "TOPD 0.1": ("--config.horizon.kind=truncated", "--config.horizon.rho=0.1"),
}
_PAPER = {  # arXiv 2605.31490, pair A: AIME24 avg@16 (OPD 49.3), and how many times faster by the clock
  "POPD": (51.0, 2.9),
  "TOPD 0.25": (51.3, 2.9),
  "TOPD 0.1": (50.7, 5.6),
}
_NEAR, _FAR = 0.05, 0.2  # accuracy within which an end counts as OPD's, and from which on it does not

tables = embedded_tables.tables


def settings(quick: bool) -> dict[str, Any]:
  if quick:
    methods = ("OPD", "POPD", "TOPD 0.25")
    return {"steps": 15, "rungs": QUICK_RUNGS, "lengths": {"uniform": (32,)}, "methods": methods}
  return {"steps": STEPS, "rungs": RUNGS, "lengths": LENGTHS, "methods": tuple(METHODS)}


def run(order: Order, ledger: Ledger) -> None:
  s = settings(order.quick)
  wanted = [
    Setting(variant, length, method, METHODS[method], seed, s["steps"], s["rungs"])
    for seed in range(order.seeds)
    for variant, lengths in s["lengths"].items()
    for length in lengths
    for method in s["methods"]
  ]
  complete(wanted, order, ledger)


def findings(runs: Runs) -> list[Finding]:
  lengths = {variant: {T: m for (name, T), m in groups(runs).items() if name == variant} for variant in LENGTHS}
  found = [_ends_as_opd(lengths["uniform"], method) for method in _PAPER if method in _methods(lengths["uniform"])]
  found += [_is_cheaper(lengths["uniform"], method) for method in _PAPER if method in _methods(lengths["uniform"])]
  found += [_late(lengths["late"], method) for method in _PAPER if method in _methods(lengths["late"])]
  ratio = estimate(run["kl_first"][-1] / run["kl_first"][0] for run in _longest(lengths["uniform"])[1]["OPD"])
  return [
    *found,
    Finding(
      "the divergence grows with the position",
      "2605.31490 (no figure)",
      f"last eighth over first, first steps of OPD, `uniform`: {ratio:.2f}",
      ratio.low > 1,
      "interval above 1",
    ),
  ]


def _methods(lengths: dict[int, Methods]) -> set[str]:
  return set().union(*lengths.values())


def _longest(lengths: dict[int, Methods]) -> tuple[int, Methods]:
  return max(lengths.items())


def _gaps(lengths: dict[int, Methods], method: str) -> tuple[list[Estimate], str]:
  """Last accuracy less OPD's at each length, and the same in words."""
  gaps = {T: gap(methods, method) for T, methods in lengths.items()}
  return list(gaps.values()), ", ".join(f"{value:+.1%} (T {T})" for T, value in gaps.items())


def _ends_as_opd(lengths: dict[int, Methods], method: str) -> Finding:
  gaps, words = _gaps(lengths, method)
  return Finding(
    f"{method} ends where OPD ends, or above",
    f"2605.31490: AIME24 {_PAPER[method][0]} against 49.3",
    f"accuracy less OPD's, `uniform`: {words}",
    all(value.low > -_NEAR for value in gaps),
    f"all intervals above -{_NEAR:.0%}",
  )


def _is_cheaper(lengths: dict[int, Methods], method: str) -> Finding:
  T, methods = _longest(lengths)
  reached, seeds = costs(methods, method), len(methods[method])
  share = estimate(cost["cpu_share_of_opd"] for cost in reached)
  return Finding(
    f"{method} is cheaper than OPD",
    f"2605.31490: {_PAPER[method][1]} times by the clock",
    f"CPU-seconds to the target, of OPD's: {share:.2f}; {len(reached)} of {seeds} reach it (`uniform`, T {T})",
    len(reached) == seeds and share.high < 1,
    "every seed reaches the target, and the interval is below 1",
  )


def _late(lengths: dict[int, Methods], method: str) -> Finding:
  gaps, words = _gaps(lengths, method)
  fails = method != "POPD"
  return Finding(
    f"where the teacher's behaviour comes late, {method} {'fails' if fails else 'does not fail'}",
    "2605.31490: TOPD fails on the control task (no figure)",
    f"accuracy less OPD's, `late`: {words}",
    all(value.high < -_FAR for value in gaps) if fails else all(value.low > -_NEAR for value in gaps),
    f"all intervals below -{_FAR:.0%}" if fails else f"all intervals above -{_NEAR:.0%}",
  )


def draw(runs: Runs, path: Path) -> None:
  shown = groups(runs)
  picture, axes = figure.panels(len(shown) + 1, 3.4)
  for ax, ((variant, T), methods) in zip(axes, shown.items()):
    embedded_tables.draw_accuracy(ax, f"{variant}, T = {T}", methods)
  for ax in axes[:: figure.ROW]:
    ax.set_ylabel("exact match, %")
  axes[0].legend(frameon=False, fontsize=8)
  longest = {variant: max(T for name, T in shown if name == variant) for variant, _ in shown}
  for colour, (variant, T) in zip(figure.COLOURS, longest.items()):
    for style, when in (("-", "first"), ("--", "last")):
      eighths = zip(*(run[f"kl_{when}"] for run in shown[variant, T]["OPD"]))
      mean = [np.mean([value for value in values if value is not None] or [np.nan]) for values in eighths]
      axes[-1].plot(range(1, 9), mean, style, color=colour, marker="o", label=f"{variant}, {when} steps")
  axes[-1].set(yscale="log", xlabel="eighth of the response", ylabel="KL, nats a token", title="OPD, by position")
  axes[-1].legend(frameon=False, fontsize=8)
  figure.save(picture, path)
