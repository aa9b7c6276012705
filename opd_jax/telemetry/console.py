"""What a person sees while a run goes on and when it ends: a live bar on a terminal, plain lines in a log.

    terminal   step 40/100  loss 0.0213  H 32/64  5.1k tok/s  acc 62.5%  ━━━━━━━━╸━━━━━━  0:03:12
    log        step 40/100  loss 0.0213  H 32/64  5.1k tok/s  eta 0:03:12  acc 62.5%

Everything fits into 80 columns.
"""

import collections
import datetime
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from opd_jax.telemetry.record import Row, RunRecord, Score, row_label, settings_line

WIDTH = 80
RECENT_STEPS = 20  # over which speed is taken


class StepProgress:
  """Follows a run from step `start` (already done) to step `steps`. Use it as a context manager.

  On a terminal every step moves the bar. In a log a line appears at the first and the last step, every `every` steps,
  and at the latest `every_seconds` after the line before. `gap`: with the step's `decode_gap`, where its row has one
  and the line has room.
  """

  def __init__(
    self,
    steps: int,
    *,
    start: int = 0,
    every: int = 10,
    every_seconds: float = 60.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    gap: bool = False,
  ):
    self._steps, self._start, self._gap = steps, start, gap
    self._every, self._every_seconds, self._clock = every, every_seconds, clock
    self._console = _console(stream)
    self._recent: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=RECENT_STEPS)
    self._shown, self._accuracy = "", ""
    self._last_line: float | None = None
    self._bar = None
    if self._console.is_terminal:
      self._bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[eta]}", markup=False),
        console=self._console,
        expand=True,
      )
      self._task = self._bar.add_task(f"step {start}/{steps}", total=steps, completed=start, eta="")

  def __enter__(self) -> "StepProgress":
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.stop()

  def step(self, row: Mapping[str, Any]) -> None:
    """A finished step: its row of `metrics.jsonl` (`step, loss, horizon, bucket, tokens, seconds_step`)."""
    compiling, waiting, evaluating = (row.get(f"seconds_{name}") or 0.0 for name in ("compile", "compile_wait", "eval"))
    self._recent.append((row["tokens"], row["seconds_step"] - compiling - waiting, evaluating))
    # Compiling does not come again, so it is left out of what is to come; evaluations do come again.
    tokens, seconds, evaluations = (sum(column) for column in zip(*self._recent))
    speed = tokens / max(seconds - evaluations, 1e-9)
    left = seconds / len(self._recent) * (self._steps - row["step"])
    eta = str(datetime.timedelta(seconds=round(left)))
    text = (
      f"step {row['step']}/{self._steps}  loss {number(row['loss'], 3)}  "
      f"H {row['horizon']}/{row['bucket']}  {count(speed)} tok/s"
    )
    gap = f"  gap {number(row['decode_gap'], 2)}" if self._gap and "decode_gap" in row else ""
    if self._bar is not None:
      self._bar.update(self._task, completed=row["step"], description=text + gap + self._accuracy, eta=eta)
      return
    now = self._clock()
    due = row["step"] % self._every == 0 or self._last_line is None or now - self._last_line >= self._every_seconds
    if due or row["step"] == self._steps:
      self._last_line = now
      rest = f"  eta {eta}{self._accuracy}"
      self.note(text + (gap if len(text + gap + rest) <= WIDTH else "") + rest)

  def evaluation(self, row: Mapping[str, Any]) -> None:
    """A finished evaluation: its row of `eval.jsonl`. The student's accuracy on the first set stays in view."""
    label = row_label(row)
    score = Score(row["step"], row["accuracy"], row.get("stderr"))
    if row["model"] == "student":
      self._shown = self._shown or label
      if label == self._shown:
        self._accuracy = f"  acc {percent(score.accuracy)}"
    self.note(f"eval {label}  step {row['step']}  {row['model']} {_cell(score)}")

  def pair(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Student and teacher side by side: (aspect, student, teacher, what to do) each; the last stands below."""
    _print_pair(self._console, rows)

  def note(self, message: str) -> None:
    """One line of its own, above the bar where there is one."""
    # Text, not markup: a data set's name may hold brackets.
    self._console.print(Text(message), soft_wrap=True)


def print_pair(rows: Sequence[tuple[str, str, str, str]], stream: TextIO | None = None) -> None:
  """The table of `StepProgress.pair` by itself."""
  _print_pair(_console(stream), rows)


def print_closing_table(run: RunRecord, stream: TextIO | None = None) -> None:
  """The end of a run at a glance, at most 80 columns wide and plain where `stream` is no terminal."""
  console = _console(stream)
  console.print()
  console.print(Text(settings_line(run.config) or run.name, style="bold"))
  results = run.results()
  if results:
    table = _table(console, "accuracy")
    for name in ("before", "after", "teacher", "gap closed"):
      table.add_column(name, justify="right", no_wrap=True)
    for result in results:
      cells = [_cell(score) for score in (result.before, result.after, result.teacher)]
      table.add_row(Text(result.label), *cells, "-" if result.gap_closed is None else f"{result.gap_closed:.0%}")
    console.print(table)
  marks = run.latest_marks()
  if any((row.get("k") or 1) > 1 or row.get("model") not in ("student", "teacher") for row in marks):
    print_marks(marks, stream)
  for name, text in totals(run):
    console.print(Text(f"{name:<10} {text}"), soft_wrap=True)


def print_marks(rows: Sequence[Row], stream: TextIO | None = None) -> None:
  """A table a model, with a line for each of its rows of eval.jsonl: how good, how sure, at best, by vote; how long."""
  console = _console(stream)
  for model in dict.fromkeys(str(row.get("model")) for row in rows):
    table = _table(console, "set")
    for name in marks_of({}):
      table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
      if str(row.get("model")) == model:
        table.add_row(Text(row_label(row)), *marks_of(row).values())
    console.print(Text(f"marks of {model}", style="bold"), soft_wrap=True)
    console.print(table)


def marks_of(row: Row) -> dict[str, str]:
  """What a row of eval.jsonl says, as texts by their column's name; "-" for what it lacks."""
  texts = {
    "accuracy": ("accuracy", lambda row: percent(row["accuracy"])),
    "95 %": ("low", lambda row: f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"),
    "pass@k": ("pass_at", lambda row: percent(row["pass_at"][str(row["k"])])),
    "maj@k": ("maj", lambda row: percent(row["maj"])),
    "tokens": ("length", lambda row: count(row["length"])),
    "cut": ("truncated", lambda row: f"{row['truncated']:.0%}"),
  }
  return {name: "-" if row.get(field) is None else text(row) for name, (field, text) in texts.items()}


def _print_pair(console: Console, rows: Sequence[tuple[str, str, str, str]]) -> None:
  table = _table(console, "", "student", "teacher")
  for *cells, _ in rows:
    table.add_row(*map(Text, cells))
  console.print(table)
  for aspect, _, _, advice in rows:
    if advice:
      console.print(Text(f"{aspect}: {advice}"), soft_wrap=True)


def _table(console: Console, *columns: str) -> Table:
  table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, pad_edge=False)
  for name in columns:
    table.add_column(name, overflow="fold")
  return table


def totals(run: RunRecord) -> list[tuple[str, str]]:
  """(name, text) of what the run took and gave, for the closing table and the report."""
  lines = []
  _, losses = run.column("loss")
  if losses:
    lines.append(("loss", f"{number(losses[0])} first, {number(run.metrics[-1].get('loss'))} last"))
  if run.metrics:
    lines.append(("generated", f"{count(run.generated_tokens())} tokens in {len(run.metrics)} steps"))
  steps, skipped = run.column("skipped")
  if any(skipped):
    first = next(step for step, one in zip(steps, skipped) if one)
    lines.append(("skipped", f"{sum(skipped)} of {len(steps)} updates, the first at step {first}"))
  split = run.seconds_split()
  if split:
    lines.append(("seconds", f"{sum(split.values()):.1f} = " + " + ".join(f"{v:.1f} {n}" for n, v in split.items())))
  compiles, unplanned = (sum(run.compiles(name).values()) for name in ("compiles", "unplanned_compiles"))
  if run.metrics:
    lines.append(("compiles", f"{compiles} ({unplanned} unplanned)"))
  return lines


def number(value: float | None, digits: int = 4) -> str:
  """So many significant digits; `nan` for a null of a row."""
  return "nan" if value is None else f"{value:.{digits}g}"


def count(value: float) -> str:
  """1234 -> 1.2k."""
  for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= size:
      return f"{value / size:.1f}{unit}"
  return f"{value:.0f}"


def percent(share: float) -> str:
  return f"{share:.1%}"


def _cell(score: Score | None) -> str:
  if score is None:
    return "-"
  return percent(score.accuracy) + (f" ±{100 * score.stderr:.1f}" if score.stderr is not None else "")


def _console(stream: TextIO | None) -> Console:
  console = Console(file=stream or sys.stdout, highlight=False)
  # A log has no width of its own, whatever COLUMNS says about the terminal that it was started from.
  return console if console.is_terminal else Console(file=console.file, highlight=False, width=WIDTH)
