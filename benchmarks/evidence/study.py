"""What all studies have in common: what they are asked for, and what they answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from benchmarks.evidence.ledger import Ledger

Runs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Order:
  """How a study is to be run.

  Attributes:
    folder: of its JSON and its picture.
    seeds: how many, counted from 0.
    quick: fewer methods and steps, to see that it works; kept apart from the real one.
    workdirs: folder of runs of `opd_jax.train`.
    workers: such runs at a time.
  """

  folder: Path
  seeds: int
  quick: bool
  workdirs: Path
  workers: int


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding of a paper beside ours.

  Attributes:
    claim: what was found, in words.
    paper: its figures and where they stand; "" where the question is ours.
    ours: our figures.
    holds: whether ours say the same, by the rule that `rule` tells.
    rule: when it is said to hold.
  """

  claim: str
  paper: str
  ours: str
  holds: bool
  rule: str

  @property
  def verdict(self) -> str:
    if not self.paper:
      return "yes" if self.holds else "no"
    return "reproduced" if self.holds else "not reproduced"


class Study(Protocol):
  """What a module of a study has.

  Attributes:
    TITLE, ABOUT: heading and text of the page.
    COST: of the full study on two cores, in words.
    QUICK_SEEDS: how many are run under --quick where nothing else is asked for.
  """

  TITLE: str
  ABOUT: str
  COST: str
  QUICK_SEEDS: int

  def settings(self, quick: bool) -> dict[str, Any]:
    """Everything that decides a run's numbers beside its name, as JSON values."""
    ...

  def run(self, order: Order, ledger: Ledger) -> None:
    """Runs what the ledger does not have."""
    ...

  def tables(self, runs: Runs) -> str:
    """Markdown."""
    ...

  def findings(self, runs: Runs) -> list[Finding]: ...

  def draw(self, runs: Runs, path: Path) -> None: ...


def ledger_path(module: ModuleType, folder: Path, quick: bool) -> Path:
  name = module.__name__.rpartition(".")[2]
  return folder / (f"{name}.quick.json" if quick else f"{name}.json")


def by_method(runs: Runs) -> dict[str, list[Any]]:
  """Runs named `METHOD seed N` as {method: runs by seed}, in the order in which methods first came."""
  groups: dict[str, dict[int, Any]] = {}
  for name, run in runs.items():
    method, _, seed = name.rpartition(" seed ")
    groups.setdefault(method, {})[int(seed)] = run
  return {method: [run for _, run in sorted(seeds.items())] for method, seeds in groups.items()}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
