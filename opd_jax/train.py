"""Trains a student on its own rollouts against a teacher.

python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.horizon.kind=truncated ...]

The same command again goes on from the newest checkpoint of the workdir. SIGTERM saves the step that the run is at and
ends with status 75.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.distributed import cluster
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table
from opd_jax.telemetry.page import write_report
from opd_jax.telemetry.record import read_run
from opd_jax.telemetry.wandb_run import check_wandb
from opd_jax.telemetry.workdir import write_command
from opd_jax.training import distill

PREEMPTED = 75  # exit status after SIGTERM: saved, run the same command again (EX_TEMPFAIL of sysexits.h)


def main(config: Config) -> None:
  if config.log.wandb and jax.process_index() == 0:
    check_wandb(config.log.wandb_mode)  # the embedded models may still have to be made
  workdir = command_line.workdir()
  run = distill(config, workdir, on_begin=lambda: write_command(workdir, "opd_jax.train", sys.argv[1:]))
  use_compilation_cache(run.workdir / "compilation_cache")
  writes = jax.process_index() == 0
  with _on_sigterm(run.stop), run:
    run.finish()
  if run.stopped:
    if writes:
      print(f"SIGTERM: step {run.metrics[-1]['step']} is saved; the same command goes on from there")
    raise SystemExit(PREEMPTED)
  if writes:
    report = write_report(run.workdir)
    print_closing_table(read_run(run.workdir))
    print(f"report     {report}")


def start(config: Config) -> None:
  """`main` of a process of its own: jax wants to hear of a cluster before it is used for anything."""
  with cluster():
    main(config)


@contextlib.contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
  """Has SIGTERM call `act`. Handlers belong to the main thread: elsewhere nothing is caught."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, lambda *_: act())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
  command_line.run(start)
