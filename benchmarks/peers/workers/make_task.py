"""The embedded task of one seed: its models, made where they are not there yet, and its prompts in a run's order."""

import json
from pathlib import Path

from meter import answer, read_job

from opd_jax import arithmetic
from opd_jax.data import PromptStream


def main() -> None:
  job = read_job()
  task = f"arithmetic:uniform@{job['seed']}"
  student, teacher = (arithmetic.make(f"{task}/{role}") for role in ("student", "teacher"))
  train, held_out = (
    [json.loads(line)["prompt"] for line in Path(arithmetic.make(f"{task}/{name}.jsonl")).read_text().splitlines()]
    for name in ("train", "eval")
  )
  taken = PromptStream([len(train)], [1.0], job["seed"]).take(0, job["prompts"])
  answer(["jax"], student=student, teacher=teacher, prompts=[train[i] for i in taken], held_out=held_out)


if __name__ == "__main__":
  main()
