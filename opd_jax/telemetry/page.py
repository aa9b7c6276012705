"""report.html: a finished (or running, or killed) run on one self-contained page; several runs compared on one.

What a model or a data set wrote reaches the page only through Jinja's escaping.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from opd_jax.telemetry import plots
from opd_jax.telemetry.console import count, marks_of, number, percent
from opd_jax.telemetry.record import Result, Row, RunRecord, Score, read_run, row_label, settings_line
from opd_jax.telemetry.rows import replace_file
from opd_jax.telemetry.template import PAGE

SAMPLES = 4  # shown in all
SAMPLE_CHARACTERS = 4000  # shown of a prompt or a completion
SHADES = 8  # of a token's KL


def write_report(workdir: str | Path) -> Path:
  """Writes WORKDIR/report.html and returns its path.

  Raises InputError where there is no run in the folder, a file of it cannot be read, or the page cannot be written.
  """
  return write_comparison([workdir], Path(workdir) / "report.html")


def write_comparison(workdirs: Sequence[str | Path], out: str | Path) -> Path:
  """Writes one page about all of `workdirs` to `out` and returns its path. Raises as `write_report` does."""
  page = render([read_run(workdir) for workdir in workdirs])
  replace_file(Path(out), page)
  return Path(out)


def render(runs: Sequence[RunRecord]) -> str:
  """The page as text."""
  environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
  names = _names(runs)
  several = len(runs) > 1
  samples = _samples(runs)
  full_kl = _colour(samples)
  return environment.from_string(PAGE).render(
    title=f"{len(runs)} runs compared" if several else names[0],
    subtitle=", ".join(names) if several else settings_line(runs[0].config),
    several=several,
    names=names,
    key=_key,
    tiles=[] if several else _tiles(runs[0]),
    outcomes=[
      _outcome(index, run, result)
      for label in _labels(runs)
      for index, run in enumerate(runs)
      for result in run.results()
      if result.label == label
    ],
    marks=[
      {"run": index, "label": row_label(row), "model": str(row.get("model")), "cells": marks_of(row)}
      for index, run in enumerate(runs)
      for row in run.latest_marks()
      if row.get("low") is not None
    ],
    charts=[chart for chart in _charts(runs) if chart["svg"]],
    samples=samples,
    full_kl=full_kl,
    shades=SHADES,
    settings=_settings(runs),
    runs=runs,
  )


def _names(runs: Sequence[RunRecord]) -> list[str]:
  """The folders' names, numbered where two are the same."""
  names = [run.name for run in runs]
  return [name if names.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(names)]


def _labels(runs: Sequence[RunRecord]) -> list[str]:
  return list(dict.fromkeys(result.label for run in runs for result in run.results()))


def _key(index: int) -> markupsafe.Markup:
  """The swatch of a run, as the charts draw it."""
  line = index // plots.COLOURS % 3
  return markupsafe.Markup(
    f'<span class="key line-{line}" style="border-top-color: var(--run-{index % plots.COLOURS})"></span>'
  )


def _tiles(run: RunRecord) -> list[dict[str, str]]:
  tiles = []
  for result in run.results()[:2]:
    last = result.after or result.before
    if last is None:
      continue
    before = f"from {percent(result.before.accuracy)}" if result.before and result.after else f"at step {last.step}"
    teacher = f", teacher {percent(result.teacher.accuracy)}" if result.teacher else ""
    tiles.append({"name": result.label, "value": percent(last.accuracy), "detail": before + teacher})
  _, losses = run.column("loss")
  if losses:
    tiles.append({"name": "loss", "value": number(losses[-1]), "detail": f"from {number(losses[0])}"})
  if run.metrics:
    compiles, unplanned = (sum(run.compiles(name).values()) for name in ("compiles", "unplanned_compiles"))
    tiles += [
      {
        "name": "generated tokens",
        "value": count(run.generated_tokens()),
        "detail": f"in {len(run.metrics)} steps",
      },
      {
        "name": "training",
        "value": f"{run.training_seconds():.4g} s",
        "detail": f"{compiles} compiles, {unplanned} unplanned",
      },
    ]
  return tiles


def _outcome(index: int, run: RunRecord, result: Result) -> dict[str, Any]:
  return {
    "run": index,
    "label": result.label,
    "cells": {
      "before": _score(result.before),
      "after": _score(result.after),
      "teacher": _score(result.teacher),
      "gap closed": "–" if result.gap_closed is None else f"{result.gap_closed:.0%}",
      "tokens": f"{run.generated_tokens():,}",
      "seconds": f"{run.training_seconds():,.1f}",
    },
  }


def _score(score: Score | None) -> str:
  if score is None:
    return "–"
  return percent(score.accuracy) + ("" if score.stderr is None else f" ± {100 * score.stderr:.1f}")


def _charts(runs: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
  def chart(title: str, note: str, svg: str | None) -> dict[str, Any]:
    return {"title": title, "note": note, "svg": svg and markupsafe.Markup(svg)}

  band = "Band: ±1 standard error. Dots: the teacher."
  for label in _labels(runs):
    yield chart(f"{label}, by tokens", band, plots.accuracy(runs, label, seconds=False))
    yield chart(
      f"{label}, by time", "Seconds of training, evaluation left out.", plots.accuracy(runs, label, seconds=True)
    )
  noisy = any(len(run.metrics) >= plots.NOISY_STEPS for run in runs)
  yield chart("Loss", "Pale: each step. Strong: running mean." if noisy else "Each step.", plots.loss(runs))
  along = "Full colour: the largest values. Rows: eighths of the longest response of a step."
  yield chart("Loss along the response", along, plots.positions(runs))
  yield chart("Horizon and bucket", "Wide: bucket. ▲ compiled, ✕ compiled unplanned.", plots.horizon(runs))
  yield chart("Completions", "Mean length, and the share cut off by the horizon.", plots.lengths(runs))
  yield chart("Time", "Wall seconds of the whole run, by part.", plots.time_split(runs))


def _samples(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
  """A few questions with the student's first and last answer: those whose mark changed first, the runs in turn."""
  found = []
  for index, run in enumerate(runs):
    questions: dict[tuple[str, str], dict[int, Row]] = {}
    for row in run.samples:
      if row.get("model", "student") == "student":
        by_step = questions.setdefault((str(row.get("set", "")), _text(row.get("prompt"))), {})
        by_step.setdefault(row["step"], row)
    for turn, ((name, prompt), by_step) in enumerate(questions.items()):
      sides = [by_step[step] for step in sorted({min(by_step), max(by_step)})]
      marks = [bool(side.get("correct")) for side in sides]
      found.append(
        {
          "run": index,
          "set": name,
          "prompt": _cut(prompt),
          "answer": _cut(_text(sides[-1].get("answer"))),
          "sides": [
            {
              "step": side["step"],
              "correct": mark,
              "completion": _cut(_text(side.get("completion"))),
              "kl": side.get("kl") or [],
              "tokens": side.get("tokens") or [],
              "spans": [],
            }
            for side, mark in zip(sides, marks)
          ],
          "order": (len(set(marks)) == 1, turn),
        }
      )
  return sorted(found, key=lambda sample: sample["order"])[:SAMPLES]


def _colour(samples: Sequence[dict[str, Any]]) -> str:
  """Gives each side that has the KL of its tokens `spans`: (text, shade from 0 to SHADES), neighbours of one shade put
  together. Returns the nats of the full colour, one scale for all; "" where no side has any."""
  sides = [side for sample in samples for side in sample["sides"] if side["kl"]]
  values = sorted(value for side in sides for value in side["kl"] if value is not None)
  if not values or values[-1] <= 0:
    return ""
  full = max(values[int(0.99 * (len(values) - 1))], 0.01 * values[-1])  # a single large token must not pale the others
  for side in sides:
    spans: list[tuple[str, int]] = []
    for text, value in zip(side["tokens"], side["kl"]):
      shade = round(SHADES * min(1.0, max(0.0, value or 0.0) / full))
      if spans and spans[-1][1] == shade:
        text = spans.pop()[0] + text
      spans.append((text, shade))
    shown, left = [], SAMPLE_CHARACTERS
    for text, shade in spans:
      shown.append((text[:left], shade))
      left = max(0, left - len(text))
    side["spans"] = [(text, shade) for text, shade in shown if text]
  return f"{full:.2g}"


def _text(value: Any) -> str:
  """A prompt as text: a string, or chat messages as `role: content` lines."""
  if isinstance(value, list):
    return "\n".join(
      f"{item.get('role', '')}: {item.get('content', '')}" if isinstance(item, Mapping) else str(item) for item in value
    )
  return "" if value is None else str(value)


def _cut(text: str) -> str:
  left_out = len(text) - SAMPLE_CHARACTERS
  return text if left_out <= 0 else f"{text[:SAMPLE_CHARACTERS]}\n… ({left_out:,} more characters)"


@dataclasses.dataclass(frozen=True)
class _Setting:
  section: str
  name: str
  values: tuple[str, ...]

  @property
  def field(self) -> str:
    return f"{self.section}.{self.name}" if self.section else self.name

  @property
  def differs(self) -> bool:
    return len(set(self.values)) > 1


def _settings(runs: Sequence[RunRecord]) -> list[_Setting]:
  """Every field of the configs, one value a run; what differs first."""
  flat = [dict(_flat(run.config)) for run in runs]
  fields = list(dict.fromkeys(field for fields in flat for field in fields))
  settings = [
    _Setting(section, name, tuple(_value(fields, (section, name)) for fields in flat)) for section, name in fields
  ]
  return sorted(settings, key=lambda setting: not setting.differs)


def _flat(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[tuple[str, str], Any]]:
  for name, value in config.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{section}.{name}" if section else name)
    else:
      yield (section, name), value


def _value(fields: Mapping[tuple[str, str], Any], field: tuple[str, str]) -> str:
  if field not in fields:
    return "–"
  value = fields[field]
  return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
