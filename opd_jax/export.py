"""Writes the student of a run's checkpoint as a Hugging Face folder that transformers loads.

python -m opd_jax.export --workdir=runs/quickstart --out=runs/quickstart-hf [--step=best]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from opd_jax import command_line, models
from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.telemetry.workdir import read_config
from opd_jax.training import open_run, restore_student

_OUT = flags.DEFINE_string("out", "", "Folder to write.")
_STEP = flags.DEFINE_string("step", "newest", "Checkpoint: newest, best (by eval.keep_best), or its step.")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise InputError(f"unexpected argument {arguments[0]!r}: options look like --name=value")
  workdir, out = command_line.workdir(), command_line.required(_OUT, "runs/my_model")
  saved = read_config(workdir)
  if not saved:
    raise InputError(f"{workdir} has no config.json: give the --workdir of a run")
  if Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
    raise InputError(f"--out={out} exists already: name a new folder")
  run = open_run(configs.from_config_dict(saved), workdir)
  student, step = restore_student(run, _STEP.value)
  models.save(student, out, source=run.student_path)
  print(f"student of step {step} written to {out}")


if __name__ == "__main__":
  command_line.run_without_config(main)
