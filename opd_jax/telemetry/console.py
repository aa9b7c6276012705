"""What a person sees while a run goes on and when it ends: a live view on a terminal, plain lines in a log.

    terminal   three lines that stay in their place (`live.py`)
    log        step 40/100  loss 0.0213  H 32/64  5.1k tok/s  eta 0:03:12  acc 62.5%

A log's lines, and all tables, fit into 80 columns.
"""

import collections
import errno
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd_jax.telemetry.live import LiveView, Moment, spell
from opd_jax.telemetry.record import Row, RunRecord, Score, row_label, seconds_by_part, settings_line

WIDTH = 80
RECENT_STEPS = 20  # over which speed and the split of the time are taken
_DRAWN_A_SECOND = 4.0  # however many steps that is


class StepProgress:
  """Follows a run from step `start` (already done) to step `steps`. Use it as a context manager.

  On a terminal a live view is drawn. In a log, a notebook, or on a terminal that cannot move its cursor (TERM=dumb) a
  line appears at the first and the last step, every `every` steps, and at the latest `every_seconds` after the line
  before. `gap`: with the step's `decode_gap`, where its row has one and the line has room.
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
    self._recent: collections.deque[tuple[float, dict[str, float]]] = collections.deque(maxlen=RECENT_STEPS)
    self._shown, self._accuracy = "", ""
    self._eval_seconds = 0.0  # since the step before
    self._last_line: float | None = None
    self._view = self._live = None
    if self._console.is_interactive:
      self._view = LiveView(steps, start, clock)
      self._live = Live(self._view, console=self._console, refresh_per_second=_DRAWN_A_SECOND)

  def __enter__(self) -> "StepProgress":
    if self._live is not None:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._live is not None:
      self._live.stop()

  def step(self, row: Mapping[str, Any]) -> None:
    """A finished step: its row of `metrics.jsonl` (`step, loss, horizon, bucket, tokens, seconds_step`)."""
    parts = seconds_by_part(row)
    parts["compile"] = parts.get("compile", 0.0) + parts.pop("compile_wait", 0.0)
    parts["eval"], self._eval_seconds = self._eval_seconds, 0.0
    self._recent.append((row["tokens"], parts))
    seconds = collections.Counter()
    for _, each in self._recent:
      seconds.update(each)
    whole, tokens = sum(seconds.values()), sum(tokens for tokens, _ in self._recent)
    speed = tokens / max(whole - seconds["compile"] - seconds["eval"], 1e-9)
    # Compiling does not come again, so it is left out of what is to come; evaluations do come again.
    left = (whole - seconds["compile"]) / len(self._recent) * (self._steps - row["step"])
    loss, fields = number(row["loss"], 3), [f"H {row['horizon']}/{row['bucket']}", f"{count(speed)} tok/s"]
    gap = f"gap {number(row['decode_gap'], 2)}" if self._gap and "decode_gap" in row else ""
    if self._view is not None:
      split = {part: spent / max(whole, 1e-9) for part, spent in seconds.most_common()}
      self._view.losses.add(row["loss"])
      self._view.moment = Moment(row["step"], (*fields, self._accuracy, gap), loss, split, left)
      return
    now = self._clock()
    due = row["step"] % self._every == 0 or self._last_line is None or now - self._last_line >= self._every_seconds
    if due or row["step"] == self._steps:
      self._last_line = now
      rest = [f"eta {spell(left)}", self._accuracy]
      line = [f"step {row['step']}/{self._steps}", f"loss {loss}", *fields]
      with_gap, without = ("  ".join(filter(None, [*line, *more, *rest])) for more in ([gap], []))
      self.note(with_gap if len(with_gap) <= WIDTH else without)

  def evaluation(self, row: Mapping[str, Any]) -> None:
    """A finished evaluation: its row of `eval.jsonl`. The student's accuracy on the first set stays in view."""
    label = row_label(row)
    score = Score(row["step"], row["accuracy"], row.get("stderr"))
    if row["model"] == "student":
      self._shown = self._shown or label
      if label == self._shown:
        self._accuracy = f"acc {percent(score.accuracy)}"
    if row["step"] > self._start:  # those before the first step do not come again
      self._eval_seconds += row.get("seconds") or 0.0
    self.note(f"eval {label}  step {row['step']}  {row['model']} {_cell(score)}")

  def pair(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Student and teacher side by side: (aspect, student, teacher, what to do) each; the last stands below."""
    _print_pair(self._console, rows)

  def note(self, message: str) -> None:
    """One line of its own, above the live view where there is one."""
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


class _Console(Console):
  """One that says where its pipe broke; rich would end the process without a word."""

  def on_broken_pipe(self) -> None:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _console(stream: TextIO | None) -> Console:
  file = stream or sys.stdout
  if hasattr(file, "reconfigure"):  # a log that is no UTF-8 must not end the run over a "±"
    file.reconfigure(errors="replace")
  console = _Console(file=file, highlight=False, force_jupyter=False)
  if console.is_interactive and file.isatty():
    return console
  # A log has no width of its own, whatever COLUMNS says about the terminal that it was started from.
  return _Console(file=file, highlight=False, force_jupyter=False, force_interactive=False, width=WIDTH)
