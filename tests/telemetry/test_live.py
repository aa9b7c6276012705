"""The live view in a terminal emulator: three lines that never wrap, whose numbers change in their place."""

import io
import re
import statistics

import pyte
import pytest

from opd_jax.telemetry.console import StepProgress
from opd_jax.telemetry.live import Losses, fit, trend

LONG = {"loss": 0.012345678, "horizon": 8192, "bucket": 8192, "tokens": 54321, "decode_gap": 0.0123}
PARTS = {"seconds_step": 4.0, "seconds_rollout": 1.5, "seconds_update": 1.0, "seconds_reshard": 0.5}
PARTS |= {"seconds_compile": 0.25, "seconds_compile_wait": 0.25}


@pytest.fixture(autouse=True)
def terminal_settings(monkeypatch):
  for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "LINES"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm-256color")


class Terminal(io.StringIO):
  """What a program writes to it, and what then stands on a screen of 40 lines."""

  def __init__(self, columns: int):
    super().__init__()
    self.columns = columns

  def isatty(self) -> bool:
    return True

  def screen(self) -> list[str]:
    """The lines from the first to the last that is not empty."""
    screen = pyte.Screen(self.columns, 40)
    screen.set_mode(pyte.modes.LNM)  # a line feed returns the carriage, as a terminal's driver has it
    pyte.Stream(screen).feed(self.getvalue())
    return "\n".join(line.rstrip() for line in screen.display).rstrip("\n").split("\n")


class Clock:
  now = 0.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def start(monkeypatch):
  """start(columns, steps, ...) -> (terminal, clock, progress on it)."""

  def make(columns: int, steps: int, **options):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal, clock = Terminal(columns), Clock()
    return terminal, clock, StepProgress(steps, stream=terminal, clock=clock, **options)

  return make


def row(step: int, **more) -> dict:
  return {"step": step, "loss": 1.0 / step, "horizon": 16, "bucket": 32, "tokens": 3000, "seconds_step": 2.0} | more


def test_numbers_change_in_their_place_and_notes_stand_above(start):
  terminal, clock, progress = start(80, 4)
  with progress:
    for step in range(1, 5):
      clock.now += 2
      progress.step(row(step, seconds_rollout=1.5, seconds_update=0.5))
      progress.note(f"note {step}")
      *notes, first, second, third = terminal.screen()
      assert notes == [f"note {at}" for at in range(1, step + 1)]
      assert re.fullmatch(rf"step {step}/4  ━+  0:00:0{2 * step}, 0:00:0{8 - 2 * step} left", first)
      blocks = ["", "█▁", "█▃▁", "█▃▂▁"][step - 1]
      assert second.split() == ["loss", f"{1 / step:.3g}", *filter(None, [blocks]), "H", "16/32", "1.5k", "tok/s"]
      assert third == "rollout 75%  update 25%"
    print("somebody else's line")
    assert terminal.screen()[4] == "somebody else's line"
  assert terminal.screen()[-3:] == [first, second, third]
  assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is there again


@pytest.mark.parametrize(
  "columns, shown",
  [
    (40, ("0:00:00, 7:26:32 left", "H 8192/8192", "rollout 38%  update 25%  reshard 12%")),
    (80, ("━" * 30, "acc 100.0%  gap 0.012", "compile 12%  other 12%")),
    (120, ("━" * 70, "acc 100.0%  gap 0.012", "compile 12%  other 12%")),
  ],
)
def test_the_numbers_of_a_long_run_do_not_wrap(start, columns, shown):
  terminal, _, progress = start(columns, 20000, start=12344, gap=True)
  with progress:
    progress.evaluation({"step": 12344, "set": "s", "model": "student", "accuracy": 1.0, "seconds": 100.0})
    progress.step(row(12345, **LONG, **PARTS))
  note, *lines = terminal.screen()
  assert note == "eval s  step 12344  student 100.0%" and len(lines) == 3
  for line, words in zip(lines, shown):
    assert words in line and len(line) < columns, lines
  assert lines[0].startswith("step 12345/20000  ") and lines[1].startswith("loss 0.0123  ")


def test_evaluations_come_again_and_count_in_the_time_that_is_left(start):
  terminal, _, progress = start(80, 12)
  with progress:
    progress.evaluation({"step": 0, "set": "s", "model": "teacher", "accuracy": 1.0, "seconds": 500.0})
    progress.step(row(1))
    progress.evaluation({"step": 1, "set": "s", "model": "student", "accuracy": 0.5, "seconds": 6.0})
    progress.step(row(2))
  *_, first, second, third = terminal.screen()
  assert first.endswith("0:00:50 left") and "1.5k tok/s" in second and third == "eval 60%  other 40%"


@pytest.mark.parametrize("environment, is_terminal", [({"TERM": "dumb"}, True), ({"FORCE_COLOR": "1"}, False)])
def test_where_no_cursor_can_be_moved_there_are_plain_lines(monkeypatch, environment, is_terminal):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  stream = Terminal(80) if is_terminal else io.StringIO()
  with StepProgress(2, stream=stream, clock=Clock()) as progress:
    progress.step(row(1))
    progress.step(row(2))
  assert stream.getvalue().splitlines() == [
    "step 1/2  loss 1  H 16/32  1.5k tok/s  eta 0:00:02",
    "step 2/2  loss 0.5  H 16/32  1.5k tok/s  eta 0:00:00",
  ]


def test_a_log_that_is_no_utf_8_ends_no_run():
  data = io.BytesIO()
  with StepProgress(1, stream=io.TextIOWrapper(data, "ascii", write_through=True)) as progress:
    progress.evaluation({"step": 0, "set": "ü", "model": "student", "accuracy": 0.5, "stderr": 0.1})
  assert data.getvalue() == b"eval ?  step 0  student 50.0% ?10.0\n"


def test_the_trend_of_a_long_run_is_of_means_in_their_order():
  assert trend(range(8, 0, -1), 8) == "█▇▆▅▄▃▂▁" and trend([3.0, 3.0], 8) == "▁▁" and trend([3.0], 8) == ""
  losses = Losses()
  for value in range(10_000):
    losses.add(float(value))
    losses.add(float("nan"))
  kept = losses.values()
  assert 200 < len(kept) < 512 and list(kept) == sorted(kept)
  assert statistics.fmean(kept) == pytest.approx(5000, rel=0.05) and trend(kept, 8) == "▁▂▃▄▅▆▇█"


def test_fields_are_shown_whole_or_not_at_all():
  assert fit(["abc", "", "defghi", "j"], 6) == ["abc", "j"]
  assert fit(["abc"], 2) == [] and fit(["abc", "de"], 7) == ["abc", "de"]
