"""Marks the newest checkpoint of a run, and a teacher of its own where that has no marks yet; rows go to eval.jsonl.

python -m opd_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
"""

import sys

from opd_jax import command_line
from opd_jax.config import STUDENT, Config
from opd_jax.errors import InputError
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table
from opd_jax.telemetry.record import read_run
from opd_jax.telemetry.workdir import RunLog
from opd_jax.training import load_teacher, open_run, restore_student


def main(config: Config) -> None:
  run = open_run(config, command_line.workdir())
  if run.evaluator is None:
    raise InputError("config.eval.path is empty: name a file of prompts with answers")
  student, step = restore_student(run)
  use_compilation_cache(run.workdir / "compilation_cache")
  # Nothing is dropped: the rows of a run that is still going on are its own.
  with RunLog(run.workdir, resume_step=sys.maxsize, tensorboard=False) as log:
    evaluations = run.evaluator(student, "student", step)
    if config.teacher.path != STUDENT and not any(row["model"] == "teacher" for row in log.evaluations):
      teacher, _ = load_teacher(run)
      evaluations += run.evaluator(teacher, "teacher", step)
    for evaluation in evaluations:
      log.evaluation(evaluation.row)
      log.samples(evaluation.samples)
  print_closing_table(read_run(run.workdir))


if __name__ == "__main__":
  command_line.run(main)
