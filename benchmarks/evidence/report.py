"""docs/results.md from what the studies left: every number and every verdict on it is made here, none by hand."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.evidence import ledger, study
from benchmarks.evidence.study import Finding

_HEAD = """\
# Results

What the papers on on-policy distillation found, looked for again at the scale of two cores. Each study is one command;
it keeps every finished run as JSON, goes on where it was stopped, and draws its picture. This page is made from those
files:

```console
{commands}
python -m benchmarks.evidence report          # this page
```

With `--quick` a study runs in under three minutes, to see that it works; its numbers are kept apart and are not here.
Figures are means over seeds with 95 % intervals (Student's t). Every verdict follows from a rule, which stands with its
study. These models are four to six orders of magnitude smaller than the papers': a finding that holds here holds for
what the study builds in, and one that does not may still hold at their scale."""


def write(names: Sequence[str], folder: Path, page: Path) -> None:
  """The page of all studies, with the numbers of those that were run to their end."""
  commands, parts, findings = [], [], []
  for name in names:
    module = importlib.import_module(f"benchmarks.evidence.{name}")
    commands.append(f"python -m benchmarks.evidence {name:14}  # {module.COST}")
    path = study.ledger_path(module, folder, quick=False)
    saved = ledger.read(path) if path.exists() else {"finished": False}
    if not saved["finished"]:
      parts.append(f"## {module.TITLE}\n\n{module.ABOUT}\n\nNot run to its end yet.")
      continue
    runs = saved["runs"]
    own = module.findings(runs)
    findings += own
    parts.append(_section(module, runs, own, os.path.relpath(path.with_suffix(".png"), page.parent)))
  summary = "## Papers beside ours\n\n" + _findings(findings)
  page.parent.mkdir(parents=True, exist_ok=True)
  page.write_text("\n\n".join([_HEAD.format(commands="\n".join(commands)), summary, *parts]) + "\n")


def _section(module: ModuleType, runs: study.Runs, findings: Sequence[Finding], picture: str) -> str:
  seeds = max(len(seeds) for seeds in study.by_method(runs).values())
  rules = "\n".join(f"- {finding.claim}: {finding.rule}." for finding in findings)
  return "\n\n".join(
    [
      f"## {module.TITLE}",
      module.ABOUT,
      f"{seeds} seeds.",
      module.tables(runs),
      f"![{module.TITLE}]({picture})",
      f"When a finding is said to hold:\n\n{rules}",
    ]
  )


def _findings(findings: Sequence[Finding]) -> str:
  rows = [[f.claim, f.paper or "-", f.ours, f.verdict if f.holds else f"**{f.verdict}**"] for f in findings]
  return study.markdown(["finding", "paper", "ours", "verdict"], rows)
