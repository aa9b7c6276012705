"""Trains a student on its own rollouts against a teacher.

python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.horizon.kind=truncated ...]

The same command again goes on from the newest checkpoint of the workdir.
"""

import sys

import jax

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.distributed import cluster
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table
from opd_jax.telemetry.page import write_report
from opd_jax.telemetry.record import read_run
from opd_jax.telemetry.workdir import make_workdir, write_command
from opd_jax.training import open_run, train


def main(config: Config) -> None:
  run = open_run(config, command_line.workdir())
  use_compilation_cache(run.workdir / "compilation_cache")
  writes = jax.process_index() == 0
  if writes:
    write_command(make_workdir(run.workdir), "opd_jax.train", sys.argv[1:])
  train(run)
  if writes:
    report = write_report(run.workdir)
    print_closing_table(read_run(run.workdir))
    print(f"report     {report}")


def start(config: Config) -> None:
  """`main` of a process of its own: jax wants to hear of a cluster before it is used for anything."""
  with cluster():
    main(config)


if __name__ == "__main__":
  command_line.run(start)
