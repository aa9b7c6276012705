"""One study of what the papers found, or the page that is made of all.

    python -m benchmarks.evidence NAME [--quick] [--out=DIR] [--seeds=5]

NAME: variance, horizons, failure_modes, topk, adaptive, or report. A study writes DIR/NAME.json (its runs, one after
the other: the same command goes on after a stop) and DIR/NAME.png; under --quick they are NAME.quick.json and .png.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks.evidence import report, study
from benchmarks.evidence.ledger import Ledger
from opd_jax import command_line
from opd_jax.errors import InputError, nearest
from opd_jax.programs.cache import use_compilation_cache

_OUT = flags.DEFINE_string("out", "benchmarks/results/evidence", "Folder of the JSON and the pictures.")
_QUICK = flags.DEFINE_bool("quick", False, "Fewer methods, steps and seeds: under three minutes.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Seeds 0 .. N-1; 5, or fewer under --quick.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "horizons, adaptive: runs at a time.", lower_bound=1)
_RUNS = flags.DEFINE_string("runs", "runs/evidence", "Folder of the runs of opd_jax.train, and of compiled programs.")
_PAGE = flags.DEFINE_string("page", "docs/results.md", "report: the page.")

STUDIES = ("variance", "horizons", "failure_modes", "topk", "adaptive")


def main(arguments: Sequence[str]) -> None:
  known = (*STUDIES, "report")
  if len(arguments) != 1:
    raise InputError(f"give the name of one study: {', '.join(known)}")
  (name,) = arguments
  if name not in known:
    raise InputError(f"no study {name!r}{nearest(name, known)}; known: {', '.join(known)}")
  folder = Path(_OUT.value)
  if name == "report":
    report.write(STUDIES, folder, Path(_PAGE.value))
    print(f"written to {_PAGE.value}")
    return
  use_compilation_cache(Path(_RUNS.value) / "compilation_cache")
  module, quick = importlib.import_module(f"benchmarks.evidence.{name}"), _QUICK.value
  seeds = _SEEDS.value or (module.QUICK_SEEDS if quick else 5)
  order = study.Order(folder, seeds, quick, Path(_RUNS.value), _WORKERS.value)
  path = study.ledger_path(module, folder, quick)
  ledger = Ledger(path, module.settings(quick))
  module.run(order, ledger)
  ledger.finish()
  module.draw(ledger, path.with_suffix(".png"))
  print(f"\n{module.tables(ledger)}\n")
  for finding in module.findings(ledger):
    print(f"{finding.verdict}: {finding.claim}\n  {finding.ours}")
  print(f"written to {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
  command_line.run_without_config(main)
