"""Gives `opd_jax.train` bad input by the hundred: each must end with one line and status 2, soon, and touch no file.

    python -m benchmarks.fuzz --out=benchmarks/results/fuzz [--inputs=1000] [--processes=60] [--seed=0]

Config files and overrides, workdirs, prompt files, tokenizer folders, config.json, safetensors and their index: made at
random from a seed, each different from all before, in this process under limits of memory and time. Of those that were
refused, --processes are then given to the real command; and a chat template that does not end. What chance changed and
left whole is accepted, and counted apart. With --only="KIND NUMBER" one input is made and shown.
"""

import collections
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags, logging

from benchmarks.fuzzing import harness
from benchmarks.fuzzing.case import Case, make_base
from benchmarks.fuzzing.harness import ACCEPTED, KINDS, REFUSED, Outcome

_INPUTS = flags.DEFINE_integer("inputs", 1000, "different inputs in this process", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", 60, "of them, how many as real processes", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "of the inputs")
_ONLY = flags.DEFINE_string("only", "", '"KIND NUMBER": this input alone, and what came of it')
_OUT = flags.DEFINE_string("out", None, "where to write OUT.json")


@dataclasses.dataclass(frozen=True)
class Tried:
  """An input and what came of it."""

  kind: str
  number: int
  case: Case
  outcome: Outcome

  @property
  def is_fault(self) -> bool:
    return self.outcome.what not in ((REFUSED,) if self.case.bad else (REFUSED, ACCEPTED))

  def to_json(self) -> dict:
    shown = {"kind": self.kind, "number": self.number, "name": self.case.name, "what": self.outcome.what}
    return shown | {"said": self.outcome.said[-1000:], "seconds": round(self.outcome.seconds, 3)}


def in_process(base: Path, root: Path) -> list[Tried]:
  """Different inputs of all kinds in turn."""
  kinds = [kind for kind in KINDS if kind != "endless template"]
  tried, seen, number = [], set(), 0
  while len(tried) < _INPUTS.value:
    kind, folder = kinds[number % len(kinds)], root / f"here{number}"
    folder.mkdir()
    case = harness.make_case(kind, _SEED.value, number, folder, base)
    mark = harness.fingerprint(case, folder)
    if mark not in seen:
      seen.add(mark)
      tried.append(Tried(kind, number, case, harness.run_here(case, folder, base)))
      _tell(tried[-1])
    _remove(folder)
    number += 1
    if number > 20 * _INPUTS.value:
      raise SystemExit(f"only {len(tried)} different inputs in {number}: ask for fewer")
  return tried


def as_processes(refused: list[Tried], base: Path, root: Path) -> list[Tried]:
  """Some of each kind that this process refused, and a template without end."""
  by_kind = collections.defaultdict(list)
  for each in refused:
    by_kind[each.kind].append((each.kind, each.number))
  turns = [turn for row in zip(*map(_cycled, by_kind.values())) for turn in row]
  chosen = [("endless template", 0), *dict.fromkeys(turns)][: _PROCESSES.value]
  tried = []
  for kind, number in chosen:
    folder = root / f"apart{len(tried)}"
    folder.mkdir()
    case = harness.make_case(kind, _SEED.value, number, folder, base)
    tried.append(Tried(kind, number, case, harness.run_apart(case, folder, base)))
    _tell(tried[-1])
  return tried


def _cycled(numbers: list) -> list:
  return [numbers[i % len(numbers)] for i in range(_PROCESSES.value)]


def _tell(tried: Tried) -> None:
  if tried.is_fault:
    print(
      f"{tried.kind} {tried.number}: {tried.case.name}: {tried.outcome.what}\n  {tried.outcome.said[-1500:]}",
      flush=True,
    )


def _remove(folder: Path) -> None:
  """Without following a link of it."""
  for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
  folder.rmdir()


def summary(tried: list[Tried]) -> dict:
  """Numbers of a list of inputs, and its faults."""
  by_kind = collections.defaultdict(collections.Counter)
  for each in tried:
    by_kind[each.kind]["fault" if each.is_fault else each.outcome.what] += 1
  return {
    "inputs": len(tried),
    "refused": sum(each.outcome.what == REFUSED for each in tried),
    "accepted": sum(each.outcome.what == ACCEPTED and not each.is_fault for each in tried),
    "faults": [each.to_json() for each in tried if each.is_fault],
    "kinds": {kind: dict(count) for kind, count in sorted(by_kind.items())},
    "longest_seconds": round(max((each.outcome.seconds for each in tried), default=0.0), 2),
    "largest_memory": max((each.outcome.memory for each in tried), default=0),
  }


def main(_) -> None:
  logging.set_verbosity(logging.WARNING)  # which `app.run` has lowered, and a command has not
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as root:
    base = make_base(Path(root, "base"))
    if _ONLY.value:
      kind, _, number = _ONLY.value.rpartition(" ")
      folder = Path(root, "only")
      folder.mkdir()
      case = harness.make_case(kind, _SEED.value, int(number), folder, base)
      outcome = (harness.run_apart if case.alone else harness.run_here)(case, folder, base)
      print(json.dumps([dataclasses.asdict(case), dataclasses.asdict(outcome)], indent=2))
      return
    here = in_process(base, Path(root))
    apart = as_processes([each for each in here if each.outcome.what == REFUSED], base, Path(root))
  answer = {
    "seed": _SEED.value,
    "python": sys.version.split()[0],
    "in_process": summary(here),
    "processes": summary(apart),
  }
  answer |= {"limits": {"seconds": harness.SECONDS, "memory": harness.MEMORY}}
  answer |= {"seconds": round(time.monotonic() - started)}
  print(json.dumps({**answer, "in_process": {**answer["in_process"], "faults": len(answer["in_process"]["faults"])}}))
  if _OUT.value:
    Path(f"{_OUT.value}.json").write_text(json.dumps(answer, indent=2) + "\n")
  if answer["in_process"]["faults"] or answer["processes"]["faults"]:
    raise SystemExit("there are faults")


if __name__ == "__main__":
  app.run(main)
