"""Marks the students of a run, or any Hugging Face folder, on the config's evaluation sets.

python -m opd_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart [--step=best]
python -m opd_jax.evaluate --config=my_run.py --model=Qwen/Qwen3-1.7B --out=marks/qwen3

The first adds the marks of a checkpoint to its run, and those of a teacher of its own where there are none yet. The
second needs no run: of the config it takes the sets, how they are sampled, the prompt's and the answer's length, the
mesh and the student's dtype. The rows go to eval.jsonl and samples.jsonl of --out, beside those of other models marked
likewise, or nowhere.
"""

from absl import flags

from opd_jax import command_line
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.errors import InputError
from opd_jax.programs import use_compilation_cache
from opd_jax.telemetry.console import print_closing_table, print_marks
from opd_jax.telemetry.record import read_run
from opd_jax.telemetry.workdir import make_workdir, more_rows, read_config, write_config
from opd_jax.training import distill, open_model

_MODEL = command_line.text("model", "", "Hugging Face folder or hub id to mark in the place of a run's student.")
_OUT = command_line.text("out", "", "With --model: folder for the rows.")
_STEP = command_line.text("step", "newest", "Checkpoint: newest, best, or its step.")

# What a mark depends on beside the model: fields of the config, without those that say when, and how many at a time.
_OF_A_MARK = ("seed", "horizon.max", "rollout.max_prompt", "student.dtype", "data.chat", "data.system", "data.suffix")
_OF_A_MARK += ("data.thinking", "eval.")
_OF_NONE = tuple(f"eval.{name}" for name in ("batch", "every", "first", "baseline", "keep_best", "compactions"))


def main(config: Config) -> None:
  if not config.eval.has_sets:
    raise InputError("config.eval.path is empty, and so is config.eval.sets: name a file of prompts with answers")
  if _MODEL.value:
    _mark_model(config, _MODEL.value)
  elif _OUT.value:
    raise InputError(f"--out={_OUT.value} goes with --model: the rows of a run go to its --workdir")
  else:
    run = distill(config, command_line.workdir())
    use_compilation_cache(run.workdir / "compilation_cache")
    run.evaluate(_STEP.value)
    print_closing_table(read_run(run.workdir))


def _mark_model(config: Config, path: str) -> None:
  if _STEP.value != "newest":
    raise InputError(f"--step={_STEP.value} is of a run's checkpoints: leave it out with --model")
  if flags.FLAGS.workdir:
    raise InputError(f"--workdir={flags.FLAGS.workdir} is a run's: with --model the rows go to --out")
  out = command_line.folder(_OUT, "marks/my_model") if _OUT.value else ""
  if out:
    _check_marks(config, out)
  evaluator, model = open_model(config, path)
  if out:
    use_compilation_cache(make_workdir(out) / "compilation_cache")
  evaluations = evaluator(model, path, 0)
  if out:
    with more_rows(out) as log:
      for evaluation in evaluations:
        evaluation.write(log)
    if not read_config(out):
      write_config(out, configs.to_dict(config))
  print_marks([evaluation.row for evaluation in evaluations])


def _check_marks(config: Config, out: str) -> None:
  """Refuses a folder of marks that would mean something else."""
  old = read_config(out)
  if not old:
    return
  differing = [
    name for name in configs.changed_fields(old, config) if name.startswith(_OF_A_MARK) and name not in _OF_NONE
  ]
  if differing:
    raise InputError(
      f"--out={out} holds marks of another config (it differs in {', '.join(differing)}): choose another --out, or the "
      "old values"
    )


if __name__ == "__main__":
  command_line.run(main)
