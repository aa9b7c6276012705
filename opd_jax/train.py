"""Trains a student on its own rollouts against a teacher.

python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.horizon.kind=truncated ...]

The same command again goes on from the newest checkpoint of the workdir.
"""

import sys

import jax

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table
from opd_jax.telemetry.page import write_report
from opd_jax.telemetry.record import read_run
from opd_jax.telemetry.workdir import make_workdir, write_command
from opd_jax.training import open_run, train


def main(config: Config) -> None:
  jax.config.update("jax_debug_nans", config.debug.nans)
  run = open_run(config, command_line.workdir())
  write_command(make_workdir(run.workdir), "opd_jax.train", sys.argv[1:])
  use_compilation_cache(run.workdir / "compilation_cache")
  train(run)
  print_closing_table(read_run(run.workdir))
  print(f"report     {write_report(run.workdir)}")


if __name__ == "__main__":
  command_line.run(main)
