"""What watching a run costs: steps of the quickstart with ever more of it, side by side.

    taskset -c 0 env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
      python -m benchmarks.watching --repeats=40 --out=benchmarks/results/watching_cpu

Its pair and prompts, at the full horizon, two runs: in one the update has the diagnostics (`benchmarks.diagnostics`
has more of them), in the other it tells its loss and what the trainer itself reads. Blocks of steps are made in turn,
forth and back, each with one more part of the watching; CPU-seconds of the process with all its threads, on one core.
A share is the median over the turns, each block against the one without anything of its own turn: a machine drifts.
What an evaluation takes, and the page at the end, are no part of a step.
"""

import contextlib
import dataclasses
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.diagnostics import silenced
from benchmarks.step import publish
from opd_jax.command_line import load_config
from opd_jax.programs import unplanned_compiles
from opd_jax.telemetry.alarms import Alarms
from opd_jax.telemetry.console import StepProgress
from opd_jax.telemetry.workdir import RunLog
from opd_jax.training import open_run
from opd_jax.training.checkpoint import Checkpointer
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.student import start
from opd_jax.training.teacher import load_frozen

# `--repeats` and `--out` are those of benchmarks.step, which benchmarks.diagnostics brings.
_BLOCK = flags.DEFINE_integer("block", 2, "steps of a block")

SETTINGS = ("horizon.kind=full", "horizon.buckets=97", "horizon.compile_ahead=false", "steps=100000")
ARMS = ("nothing", "diagnostics", "rows, alarms, TensorBoard", "live view")  # each with what stands before it
Record = Callable[[dict[str, Any] | None], None]


class Terminal(io.TextIOWrapper):
  """A terminal that nobody looks at."""

  def isatty(self) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Watched:
  """A run whose steps are counted on from block to block, and where its rows go."""

  steps: Pipeline
  log: RunLog
  alarms: Alarms
  terminal: Terminal

  @contextlib.contextmanager
  def recording(self, arm: str) -> Iterator[Record]:
    """As `training.loop` records a row, as far as the arm goes."""
    level, screen = ARMS.index(arm), contextlib.nullcontext()
    if arm == "live view":
      screen = StepProgress(100_000, start=self.steps.progress.step, stream=self.terminal)
    with screen as console:

      def record(row: dict[str, Any] | None) -> None:
        if row is None or level < ARMS.index("rows, alarms, TensorBoard"):
          return
        row |= {"unplanned_compiles": unplanned_compiles()}
        self.log.step(row)
        for line in self.alarms(row):
          print(line)
        if console is not None:
          console.step(row)

      yield record


def open_watched(workdir: Path, silent: bool) -> Watched:
  """A run whose programs are compiled, three steps after its start."""
  config = load_config("configs/quickstart.py", [f"--config.{setting}" for setting in SETTINGS])
  with silenced() if silent else contextlib.nullcontext():
    run = open_run(config, workdir)
    checkpoints = Checkpointer(workdir, 1, "")
    steps = Pipeline(run, load_frozen(run)[0], *start(run, checkpoints))
    checkpoints.close()
    for _ in range(3):
      steps.advance()
    steps.drain()
  return Watched(steps, RunLog(workdir), Alarms(), Terminal(open(os.devnull, "wb")))


def seconds_a_step(watched: Watched, arm: str) -> float:
  """CPU-seconds of one of a block's steps."""
  with watched.recording(arm) as record:
    started = time.process_time()
    for _ in range(_BLOCK.value):
      record(watched.steps.advance())
    record(watched.steps.drain())
    return (time.process_time() - started) / _BLOCK.value


def main(_) -> None:
  os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120"}
  taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
  with tempfile.TemporaryDirectory() as folder:
    runs = {silent: open_watched(Path(folder) / f"silent_{silent}", silent) for silent in (True, False)}
    for repeat in range(flags.FLAGS.repeats):
      for arm in ARMS if repeat % 2 == 0 else reversed(ARMS):
        taken[arm].append(seconds_a_step(runs[arm == "nothing"], arm))
    for watched in runs.values():
      watched.log.close()
  lines = ["| watched | CPU-ms a step | above nothing |", "|---|---|---|"]
  for arm, seconds in taken.items():
    above = (mine / bare - 1 for mine, bare in zip(seconds, taken["nothing"], strict=True))
    lines.append(f"| {arm} | {1e3 * statistics.median(seconds):.1f} | {statistics.median(above):.1%} |")
  publish("\n".join(lines) + "\n", taken)


if __name__ == "__main__":
  app.run(main)
