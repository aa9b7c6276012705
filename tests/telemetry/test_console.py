"""What a run prints: plain lines within 80 columns in a log, a live view on a terminal, tables at its end."""

import contextlib
import io
import pty
import re

import pytest

from opd_jax.telemetry.console import StepProgress, print_closing_table
from opd_jax.telemetry.record import RunRecord, read_run


@pytest.fixture(autouse=True)
def no_forced_colours(monkeypatch):
  for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "COLUMNS"):
    monkeypatch.delenv(name, raising=False)


class Clock:
  now = 0.0

  def __call__(self) -> float:
    return self.now


def row(step: int, **more) -> dict:
  return {"step": step, "loss": 0.5, "horizon": 16, "bucket": 32, "tokens": 3000, "seconds_step": 2.0} | more


def logged(steps: int, *, seconds: float = 0.0, **options) -> list[str]:
  stream, clock = io.StringIO(), Clock()
  with StepProgress(steps, stream=stream, clock=clock, **options) as progress:
    for step in range(1, steps + 1):
      clock.now += seconds
      progress.step(row(step))
  assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
  return stream.getvalue().splitlines()


def test_a_log_gets_the_first_the_last_and_every_so_many_steps():
  lines = logged(25, every=10)
  assert [int(re.match(r"step (\d+)/25 ", line)[1]) for line in lines] == [1, 10, 20, 25]
  assert lines[1] == "step 10/25  loss 0.5  H 16/32  1.5k tok/s  eta 0:00:30"


def test_slow_steps_get_a_line_by_time():
  lines = logged(9, every=1000, every_seconds=60, seconds=25)
  assert [line.split("/")[0] for line in lines] == ["step 1", "step 4", "step 7", "step 9"]


def test_compiling_is_no_part_of_what_is_to_come():
  stream = io.StringIO()
  with StepProgress(100, stream=stream) as progress:
    progress.step(row(1, seconds_step=62.0, seconds_compile=60.0))
  assert "1.5k tok/s  eta 0:03:18" in stream.getvalue()  # 99 steps of 2 s


def test_the_gap_is_shown_where_it_is_asked_for_and_there():
  stream = io.StringIO()
  with StepProgress(3, every=1, stream=stream, gap=True) as progress:
    progress.step(row(1, decode_gap=0.01234))
    progress.step(row(2))
  assert stream.getvalue().splitlines() == [
    "step 1/3  loss 0.5  H 16/32  1.5k tok/s  gap 0.012  eta 0:00:04",
    "step 2/3  loss 0.5  H 16/32  1.5k tok/s  eta 0:00:02",
  ]
  with StepProgress(3, every=1, stream=(without := io.StringIO())) as progress:
    progress.step(row(1, decode_gap=0.01234))
  assert "gap" not in without.getvalue()


def test_the_accuracy_of_the_first_set_stays_in_view():
  stream = io.StringIO()
  with StepProgress(3, every=1, stream=stream) as progress:
    for name, model, accuracy in (("[a]", "student", 0.25), ("[a]", "teacher", 1.0), ("b", "student", 0.5)):
      progress.evaluation({"step": 0, "set": name, "model": model, "accuracy": accuracy, "stderr": 0.031})
    progress.step(row(1, loss=None))
  assert stream.getvalue().splitlines() == [
    "eval [a]  step 0  student 25.0% ±3.1",
    "eval [a]  step 0  teacher 100.0% ±3.1",
    "eval b  step 0  student 50.0% ±3.1",
    "step 1/3  loss nan  H 16/32  1.5k tok/s  eta 0:00:04  acc 25.0%",
  ]


def test_marks_of_k_answers_get_a_table_a_model():
  marks = {
    "low": 0.0,
    "high": 0.123,
    "pass_at": {"1": 0.05, "16": 0.5},
    "maj": 0.25,
    "length": 15360.0,
    "truncated": 1.0,
  }
  rows = [
    {"step": step, "set": "[aime25]", "model": model, "k": k, "temperature": t, "accuracy": 0.0625, **marks}
    for step, model, k, t in (
      (0, "student", 16, 0.7),
      (8, "student", 16, 0.7),
      (8, "student", 1, 0.0),
      (0, "a/b", 1, 0.0),
    )
  ]
  stream = io.StringIO()
  print_closing_table(RunRecord("run", {}, "", (), tuple(rows), ()), stream)
  text = stream.getvalue()
  assert max(map(len, text.splitlines())) <= 80
  shown = [" ".join(re.sub(r"[|+-]{2,}|\|", " ", line).split()) for line in text.splitlines()]
  student, other = (text.index(f"marks of {model}") for model in ("student", "a/b"))
  assert student < text.index("[aime25] T=0.7 avg@16", student) < other
  assert shown.count("[aime25] T=0.7 avg@16 6.2% 0.0-12.3 50.0% 25.0% 15.4k 100%") == 1
  assert shown.count("[aime25] greedy 6.2% 0.0-12.3 5.0% 25.0% 15.4k 100%") == 2

  stream = io.StringIO()
  print_closing_table(RunRecord("run", {}, "", (), (rows[2],), ()), stream)
  assert "marks of" not in stream.getvalue()  # greedy marks alone are in the table above


def test_a_long_run_fits_80_columns():
  stream = io.StringIO()
  wide = {"horizon": 8192, "bucket": 8192, "tokens": 54321, "seconds_step": 4.0, "decode_gap": 0.0123}
  with StepProgress(20000, stream=stream, gap=True) as progress:
    progress.evaluation({"step": 0, "set": "s", "model": "student", "accuracy": 1.0})
    progress.step(row(12345, loss=0.012345678, **wide))
  assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_a_terminal_gets_a_live_view(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "80")
  ours, theirs = pty.openpty()
  with open(theirs, "w") as stream:
    with StepProgress(4, stream=stream) as progress:
      for step in range(1, 5):
        progress.step(row(step))
      progress.note("checkpoint [4] saved")
  shown = b""
  with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # EIO: nobody writes any more
    while True:
      shown += terminal.read(4096)
  frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown.decode())]
  assert "checkpoint [4] saved" in frames
  assert any(re.fullmatch(r"step 4/4  ━+  0:00:0\d, 0:00:00 left", frame) for frame in frames)
  assert any(re.fullmatch(r"loss 0.5 ▁▁▁▁  H 16/32  1.5k tok/s", frame) for frame in frames)
  assert max(map(len, frames)) <= 80


def test_the_closing_table_of_a_log(make_run):
  stream = io.StringIO()
  print_closing_table(read_run(make_run()), stream)
  text = stream.getvalue()
  assert "\x1b" not in text
  table = [line for line in text.splitlines() if line.startswith(("|", "+"))]
  assert table and max(map(len, table)) <= 80
  assert re.search(r"\| +25\.0% ±3\.0 \| 75\.0% ±3\.0 \| 85\.0% ±3\.0 \| +83%\|", text)
  assert "loss       1 first, 0.08333 last" in text
  assert "generated  1.2k tokens in 12 steps" in text
  assert "seconds    13.5 = 6.0 rollout + 3.0 update + 1.5 eval + 3.0 other" in text
  assert "compiles   4 (0 unplanned)" in text


def test_the_closing_table_of_a_run_without_evaluation():
  stream = io.StringIO()
  run = RunRecord("bare", {}, "", ({"step": 1, "loss": None},), (), ())
  print_closing_table(run, stream)
  assert stream.getvalue().split("\n", 2)[2] == "generated  0 tokens in 1 steps\ncompiles   0 (0 unplanned)\n"


def test_skipped_updates_are_counted_at_the_end():
  rows = tuple({"step": step, "loss": 0.5, "skipped": int(step in (2, 5))} for step in range(1, 7))
  print_closing_table(RunRecord("bare", {}, "", rows, (), ()), stream := io.StringIO())
  assert "skipped    2 of 6 updates, the first at step 2" in stream.getvalue()


def test_a_pair_is_shown_side_by_side_with_what_to_do_below():
  stream = io.StringIO()
  rows = [
    ("ends an answer with", "'<|im_end|>'", "'</s>'", "leave it out of the loss"),
    ("padding", "[pad]", "none", ""),
  ]
  with StepProgress(1, stream=stream) as progress:
    progress.pair(rows)
  lines = stream.getvalue().splitlines()
  assert all(len(line) <= 80 for line in lines) and "[pad]" in stream.getvalue()
  assert [line for line in lines if "'</s>'" in line and "'<|im_end|>'" in line]
  assert lines[-1] == "ends an answer with: leave it out of the loss"
