"""A run of TRL's DistillationTrainer on the embedded task: CPU-seconds at each of some steps, and the student there."""

from pathlib import Path

from meter import answer, cpu_seconds, read_job
from trl_trainer import AfterStep, HorizonSchedule, make_trainer


def main() -> None:
  job = read_job()
  folder, curve, spent, started = Path(job["folder"]), [], 0.0, 0.0

  def after_step(step: int) -> None:
    nonlocal spent, started
    spent += cpu_seconds() - started
    if step in job["evaluated"]:
      trainer.model.save_pretrained(folder / f"step{step}")
      tokens = trainer.state.num_input_tokens_seen - step * job["rows"] * job["prompt"]
      curve.append({"step": step, "cpu_seconds": spent, "compiling": 0.0, "tokens": int(tokens)})
    started = cpu_seconds()

  callbacks = [AfterStep(after_step)]
  if schedule := job["schedule"]:
    start, increment, every = schedule
    callbacks.append(HorizonSchedule(lambda step: min(job["horizon"], start + increment * (step // every))))
  trainer = make_trainer(job, job["prompts"], max(job["evaluated"]), True, *callbacks)
  started = cpu_seconds()
  trainer.train()
  answer(["trl", "torch", "transformers"], curve=curve)


if __name__ == "__main__":
  main()
