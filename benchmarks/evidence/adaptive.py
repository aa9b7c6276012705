"""Horizons that find their own way, against POPD with schedules set by hand: how close without tuning."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.evidence import embedded_tables, figure
from benchmarks.evidence.embedded_runs import QUICK_RUNGS, RUNGS, STEPS, WHOLE, Setting, complete
from benchmarks.evidence.embedded_tables import Methods, costs, gap, groups
from benchmarks.evidence.estimates import estimate
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.study import Finding, Order, Runs

TITLE = "Horizons that adapt"
COST = "25 minutes after `horizons`, which makes a quarter of its runs"
QUICK_SEEDS = 1
ABOUT = """\
`configs/quickstart.py` with another `horizon.kind`, on both tasks, beside POPD with three schedules set by hand: that
of the study before, which adds 10 tokens every second step, 10 every fourth, and 24 every second. The controllers have
the fields that `config/fields.py` gives them, but for two that count steps and tokens and are cut to the size of this
task, the same for both: `horizon.every` 4 (a tenth of the run) and `horizon.window` 8 (a twelfth of T). No paper has
them on this task: the question is how close each comes to a schedule that somebody chose knowing it."""

HAND_SET = {  # the first is the POPD of the study before, whose runs are taken where they are kept
  "POPD": (),
  "POPD 10 every 4": ("--config.horizon.every=4",),
  "POPD 25 every 2": ("--config.horizon.start=25", "--config.horizon.increment=24"),
}
_SIZED = ("--config.horizon.every=4", "--config.horizon.window=8")
CONTROLLERS = {
  kind: (f"--config.horizon.kind={kind}", *_SIZED) for kind in ("reliability", "random", "probe", "change_point")
}
METHODS = {"OPD": ("--config.horizon.kind=full",), **HAND_SET, **CONTROLLERS}
_QUICK = ("OPD", "POPD", "reliability", "random")  # a probe and a look at margins are programs of their own

tables = embedded_tables.tables


def settings(quick: bool) -> dict[str, Any]:
  if quick:
    return {"steps": 12, "rungs": QUICK_RUNGS, "length": 32, "variants": ("uniform",), "methods": _QUICK}
  return {"steps": STEPS, "rungs": RUNGS, "length": WHOLE, "variants": ("uniform", "late"), "methods": tuple(METHODS)}


def run(order: Order, ledger: Ledger) -> None:
  s = settings(order.quick)
  wanted = [
    Setting(variant, s["length"], method, METHODS[method], seed, s["steps"], s["rungs"])
    for seed in range(order.seeds)
    for variant in s["variants"]
    for method in s["methods"]
  ]
  complete(wanted, order, ledger)


def findings(runs: Runs) -> list[Finding]:
  found, shown = [], groups(runs)
  for controller in CONTROLLERS:
    told = [_beside_hand_set(variant, m, controller) for (variant, _), m in shown.items() if controller in m]
    if not told:
      continue
    found.append(
      Finding(
        f"`{controller}`, untuned, costs no more than a schedule set by hand",
        "",
        "; ".join(words for words, _ in told),
        all(close for _, close in told),
        "on both tasks every seed reaches the target, with no more tokens than the dearest schedule set by hand",
      )
    )
  return found


def _tokens(methods: Methods, method: str) -> list[float]:
  """To the target, as a share of OPD's, of each seed that reaches it."""
  return [cost["tokens_share_of_opd"] for cost in costs(methods, method)]


def _beside_hand_set(variant: str, methods: Methods, controller: str) -> tuple[str, bool]:
  """How a controller did on a task, in words, and whether that is as good as the dearest schedule."""
  share, seeds = _tokens(methods, controller), len(methods[controller])
  by_hand = [statistics.fmean(tokens) for name in HAND_SET if name in methods and (tokens := _tokens(methods, name))]
  words = (
    f"`{variant}` {estimate(share):.2f} of OPD's tokens, {len(share)} of {seeds} seeds reach the target, end "
    f"{gap(methods, controller):+.1%} from OPD's"
  )
  if not by_hand:
    return f"{words} (by hand: none reaches it)", len(share) == seeds
  close = len(share) == seeds and statistics.fmean(share) <= max(by_hand)
  return f"{words} (by hand {min(by_hand):.2f} to {max(by_hand):.2f})", close


def draw(runs: Runs, path: Path) -> None:
  shown = groups(runs)
  picture, axes = figure.panels(len(shown))
  for ax, ((variant, T), methods) in zip(axes, shown.items()):
    embedded_tables.draw_accuracy(ax, f"{variant}, T = {T}", methods)
  axes[0].set_ylabel("exact match, %")
  axes[0].legend(frameon=False, fontsize=7)
  figure.save(picture, path)
