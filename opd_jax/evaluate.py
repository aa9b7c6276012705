"""Marks the students of a run, or any Hugging Face folder, on the config's evaluation sets.

python -m opd_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart [--step=best]
python -m opd_jax.evaluate --config=my_run.py --model=Qwen/Qwen3-1.7B --out=marks/qwen3

The first adds the marks of a checkpoint to its run, and those of a teacher of its own where there are none yet. The
second needs no run: of the config it takes the sets, how they are sampled, the prompt's and the answer's length, the
mesh and the student's dtype. The rows go to eval.jsonl and samples.jsonl of --out (or --workdir), or nowhere.
"""

import sys

from absl import flags

from opd_jax import command_line
from opd_jax import config as configs
from opd_jax.config import STUDENT, Config
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.evaluation.questions import list_labels
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table, print_marks
from opd_jax.telemetry.record import read_run, row_label
from opd_jax.telemetry.workdir import RunLog, make_workdir, read_config, write_config
from opd_jax.training import load_teacher, open_model, open_run, restore_student

_MODEL = flags.DEFINE_string("model", "", "Hugging Face folder or hub id to mark in the place of a run's student.")
# `export` has these two as well: who imports both commands gets one flag of each name.
_OUT = flags.DEFINE_string("out", "", "With --model: folder for the rows.", allow_override=True)
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best, or its step.", allow_override=True)


def main(config: Config) -> None:
  if not config.eval.has_sets:
    raise InputError("config.eval.path is empty, and so is config.eval.sets: name a file of prompts with answers")
  if _MODEL.value and _STEP.value != "newest":
    raise InputError(f"--step={_STEP.value} is of a run's checkpoints: leave it out with --model")
  if _MODEL.value:
    _mark_model(config, _MODEL.value)
  elif _OUT.value:
    raise InputError(f"--out={_OUT.value} goes with --model: the rows of a run go to its --workdir")
  else:
    _mark_run(config)


def _mark_run(config: Config) -> None:
  run = open_run(config, command_line.workdir())
  student, step = restore_student(run, _STEP.value)
  use_compilation_cache(run.workdir / "compilation_cache")
  # Nothing is dropped: the rows of a run that is still going on are its own.
  with RunLog(run.workdir, resume_step=sys.maxsize, tensorboard=False) as log:
    _record(log, run.evaluator(student, "student", step))
    marked = {row_label(row) for row in log.evaluations if row["model"] == "teacher"}
    if config.teacher.path != STUDENT and not marked.issuperset(list_labels(config.eval)):
      teacher, _ = load_teacher(run)
      _record(log, run.evaluator(teacher, "teacher", step))
  print_closing_table(read_run(run.workdir))


def _mark_model(config: Config, path: str) -> None:
  evaluator, model = open_model(config, path)
  folder = _OUT.value or flags.FLAGS.workdir
  if folder:
    use_compilation_cache(make_workdir(folder) / "compilation_cache")
  evaluations = evaluator(model, path, 0)
  if folder:
    with RunLog(folder, resume_step=sys.maxsize, tensorboard=False) as log:
      _record(log, evaluations)
    if not read_config(folder):
      write_config(folder, configs.to_dict(config))
  print_marks([evaluation.row for evaluation in evaluations])


def _record(log: RunLog, evaluations: list[Evaluation]) -> None:
  for evaluation in evaluations:
    log.evaluation(evaluation.row)
    log.samples(evaluation.samples)


if __name__ == "__main__":
  command_line.run(main)
