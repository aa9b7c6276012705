"""A workdir read back: the rows of a run, and the totals that the closing table and the report are made of.

Pure reading. What a run did not record is simply absent (None, an empty list), so that a summary of an old, short or
killed run still works.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd_jax.errors import InputError
from opd_jax.telemetry.rows import read_rows
from opd_jax.telemetry.workdir import read_config

Row = Mapping[str, Any]
_DRAWN = 1e100


@dataclasses.dataclass(frozen=True)
class Score:
  """One accuracy in [0, 1] at a step; `stderr` None where it was not recorded."""

  step: int
  accuracy: float
  stderr: float | None


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of one evaluation set under one sampling setting."""

  label: str
  student: tuple[Score, ...]  # by step
  teacher: Score | None

  @property
  def before(self) -> Score | None:
    return self.student[0] if self.student and self.student[0].step == 0 else None

  @property
  def after(self) -> Score | None:
    return self.student[-1] if self.student and self.student[-1].step > 0 else None

  @property
  def gap_closed(self) -> float | None:
    """(after - before) / (teacher - before); None where one is unknown or the teacher was not ahead."""
    if not (self.before and self.after and self.teacher) or self.teacher.accuracy <= self.before.accuracy:
      return None
    return (self.after.accuracy - self.before.accuracy) / (self.teacher.accuracy - self.before.accuracy)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One run as its workdir tells it."""

  name: str
  config: Row
  command: str
  metrics: tuple[Row, ...]  # by step
  evaluations: tuple[Row, ...]
  samples: tuple[Row, ...]

  def column(self, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one metric, without the steps where it is missing, null, or too large to be drawn."""
    pairs = [(row["step"], row.get(name)) for row in self.metrics]
    pairs = [(step, value) for step, value in pairs if isinstance(value, int | float) and abs(value) < _DRAWN]
    return [step for step, _ in pairs], [value for _, value in pairs]

  def generated_tokens(self, step: int | None = None) -> int:
    """Tokens generated up to and including `step` (None: in the whole run)."""
    return self._spent[self._rows_until(step)][0]

  def training_seconds(self, step: int | None = None) -> float:
    """Wall seconds of the steps up to `step`; evaluations are no part of them: they belong to the watching."""
    return self._spent[self._rows_until(step)][1]

  def seconds_split(self) -> dict[str, float]:
    """Wall seconds by part: what the steps name, `eval` of the evaluations, and `other`, the rest of the steps."""
    split = collections.Counter()
    for row in self.metrics:
      split.update(seconds_by_part(row))
    other = split.pop("other", 0.0)
    split["eval"] = sum(_number(row, "seconds") for row in self.evaluations)
    return {part: seconds for part, seconds in {**split, "other": other}.items() if seconds > 0}

  def compiles(self, name: str = "compiles") -> dict[int, int]:
    """step -> programs compiled in it, from `compiles_new` where rows have it. Otherwise from the column, which counts
    from the start of a process, so that a fall is a resume."""
    if name == "compiles" and any("compiles_new" in row for row in self.metrics):
      return {row["step"]: len(row["compiles_new"]) for row in self.metrics if row.get("compiles_new")}
    steps, counts = self.column(name)
    found = {}
    for step, before, after in zip(steps, itertools.chain([0], counts), counts):
      new = after - before if after >= before else after
      if new > 0:
        found[step] = int(new)
    return found

  def by_position(self, name: str) -> tuple[list[int], list[list[float | None]]]:
    """(steps, values) of one metric that is a list of means along a response, None where a row has none there."""
    pairs = [(row["step"], row[name]) for row in self.metrics if isinstance(row.get(name), list)]
    return [step for step, _ in pairs], [values for _, values in pairs]

  def latest_marks(self) -> list[Row]:
    """The last evaluation of each model on each set under each setting, in the order in which they first appear."""
    return list({(row_label(row), row.get("model")): row for row in self.evaluations}.values())

  def results(self) -> list[Result]:
    """One a set, k and temperature that student or teacher were marked on, in the order in which they first appear."""
    groups: dict[str, list[Row]] = {}
    for row in self.evaluations:
      if isinstance(row.get("accuracy"), int | float) and row.get("model") in ("student", "teacher"):
        groups.setdefault(row_label(row), []).append(row)
    results = []
    for label, rows in groups.items():
      scores = {"student": {}, "teacher": {}}
      for row in rows:
        score = Score(row["step"], row["accuracy"], row.get("stderr"))
        scores[row["model"]][row["step"]] = score  # a later row of one step stands
      student = tuple(score for _, score in sorted(scores["student"].items()))
      teacher = scores["teacher"][max(scores["teacher"])] if scores["teacher"] else None
      results.append(Result(label, student, teacher))
    return results

  @functools.cached_property
  def _spent(self) -> list[tuple[int, float]]:
    """(tokens, training seconds) after 0, 1, 2, ... rows."""
    spent = [(0, 0.0)]
    for row in self.metrics:
      tokens, seconds = spent[-1]
      seconds += _number(row, "seconds_step")
      spent.append((tokens + int(_number(row, "tokens")), seconds))
    return spent

  def _rows_until(self, step: int | None) -> int:
    if step is None:
      return len(self.metrics)
    return bisect.bisect_right(self.metrics, step, key=lambda row: row["step"])


def read_run(workdir: str | Path) -> RunRecord:
  """The record of a workdir. InputError where there is no run in it, or a file of it cannot be read."""
  path = Path(workdir)
  if not path.is_dir():
    raise InputError(f"no folder {path}: give the --workdir of a run")
  metrics = read_rows(path / "metrics.jsonl")
  evaluations = read_rows(path / "eval.jsonl")
  if not metrics and not evaluations:
    raise InputError(f"{path} has no metrics.jsonl or eval.jsonl with a row in it yet: give the --workdir of a run")
  command = path / "command.sh"
  return RunRecord(
    name=path.resolve().name,
    config=read_config(path),
    command=command.read_text(errors="replace") if command.is_file() else "",
    metrics=tuple(sorted(metrics, key=lambda row: row["step"])),
    evaluations=tuple(evaluations),
    samples=tuple(read_rows(path / "samples.jsonl")),
  )


def seconds_by_part(row: Row) -> dict[str, float]:
  """The parts of a step's wall time that its row names, and `other`: what they leave of `seconds_step`."""
  parts = {
    name.removeprefix("seconds_"): _number(row, name)
    for name in row
    if name.startswith("seconds_") and name != "seconds_step" and _number(row, name)
  }
  other = _number(row, "seconds_step") - sum(parts.values())
  return parts | {"other": other} if other > 1e-9 else parts


def settings_line(config: Row) -> str:
  """What was run, in one line: the objective, the horizon, the batch, the optimizer."""
  horizon, rollout, optimizer = (config.get(name) or {} for name in ("horizon", "rollout", "optimizer"))
  of_kind = {
    "truncated": "rho {rho} of {max}",
    "progressive": "{start} + {increment} every {every} to {max}",
  }.get(horizon.get("kind"), "{max}")
  parts = [
    ((config.get("objective") or {}).get("kind"), "{}"),
    (horizon.get("kind"), "{} horizon " + of_kind.format_map({"max": "?", **_Unknown(horizon)})),
    (config.get("steps"), "{} steps"),
    (rollout.get("prompts_per_step"), "{} x " + str(rollout.get("samples_per_prompt", 1)) + " rollouts a step"),
    (optimizer.get("learning_rate"), "learning rate {}"),
    (config.get("seed"), "seed {}"),
  ]
  return ", ".join(form.format(value) for value, form in parts if value is not None)


def set_label(name: str | None, k: int | None, temperature: float | None) -> str:
  """An evaluation set with its sampling setting, such as `math500 T=1 avg@4`."""
  how = "" if temperature is None else " greedy" if temperature == 0 else f" T={temperature:g}"
  return f"{name or 'eval'}{how}{f' avg@{k}' if k and k > 1 else ''}"


def row_label(row: Row) -> str:
  """What an evaluation is called: the label of its set and setting."""
  return set_label(row.get("set"), row.get("k"), row.get("temperature"))


class _Unknown(dict):
  """A field that a config lacks reads as "?"."""

  def __missing__(self, key: str) -> str:
    return "?"


def _number(row: Row, name: str) -> float:
  """A number of a row; 0 where it is missing, null, or something else."""
  value = row.get(name)
  return value if isinstance(value, int | float) else 0.0
