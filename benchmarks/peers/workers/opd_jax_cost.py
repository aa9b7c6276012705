"""A run of our trainer on the embedded task: CPU-seconds at each of some steps, and the student there."""

from pathlib import Path

from meter import answer, cpu_seconds, read_job

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.training.checkpoint import Progress
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.run import open_run
from opd_jax.training.state import Frozen, init_state, make_optimizer


def main() -> None:
  job = read_job()
  folder, seed = Path(job["folder"]), job["seed"]
  config = load_config(
    f"configs/quickstart.py:uniform@{seed}",
    [
      f"--config.seed={seed}",
      f"--config.steps={max(job['evaluated'])}",
      f"--config.student.path={job['student']}",
      f"--config.teacher.path={job['teacher']}",
      f"--config.rollout.prompts_per_step={job['rows']}",
      "--config.eval.path=",
      "--config.horizon.compile_ahead=False",  # in the foreground, so that compiling can be told apart
      *job["overrides"],
    ],
  )
  run = open_run(config, folder / "run")
  teacher = models.load(run.teacher_path, dtype="float32", mesh=run.mesh)
  student = models.load(run.student_path, dtype="float32", mesh=run.mesh)
  state = init_state(student, make_optimizer(config))
  steps = Pipeline(run, Frozen(teacher), state, Progress(0, seed, 0, None, ""))
  del student, state  # used up
  curve, spent, compiling, tokens = [], 0.0, 0.0, 0
  for step in range(1, config.steps + 1):
    started = cpu_seconds()
    rows = [steps.advance()]
    if step in job["evaluated"]:
      rows.append(steps.drain())
    spent += cpu_seconds() - started
    for row in filter(None, rows):
      compiling += row["cpu_seconds_compile"]
      tokens += row["tokens"]
    if step in job["evaluated"]:
      models.save(steps.state.student, folder / f"step{step}", source=run.student_path)
      curve.append({"step": step, "cpu_seconds": spent, "compiling": compiling, "tokens": tokens})
  answer(["jax"], curve=curve)


if __name__ == "__main__":
  main()
