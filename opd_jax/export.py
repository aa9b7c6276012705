"""Writes the student of a run's checkpoint as a Hugging Face folder that transformers loads.

python -m opd_jax.export --workdir=runs/quickstart --out=runs/quickstart-hf [--step=best]
"""

from collections.abc import Sequence
from pathlib import Path

from opd_jax import command_line
from opd_jax import config as configs
from opd_jax.errors import InputError
from opd_jax.telemetry.workdir import read_config
from opd_jax.training import distill

_OUT = command_line.text("out", "", "Folder to write.")
_STEP = command_line.text("step", "newest", "Checkpoint: newest, best (by eval.keep_best), or its step.")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise InputError(f"unexpected argument {arguments[0]!r}: options look like --name=value")
  workdir, out = command_line.workdir(), command_line.required(_OUT, "runs/my_model")
  saved = read_config(workdir)
  if not saved:
    raise InputError(f"{workdir} has no config.json: give the --workdir of a run")
  if Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
    raise InputError(f"--out={out} exists already: name a new folder")
  step = distill(configs.from_config_dict(saved), workdir).export(out, _STEP.value)
  print(f"student of step {step} written to {out}")


if __name__ == "__main__":
  command_line.run_without_config(main)
