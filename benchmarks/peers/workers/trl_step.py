"""A step of TRL's DistillationTrainer: its loss on given tokens, or its CPU-seconds and memory."""

import torch
from meter import answer, cpu_seconds, peak_bytes, read_job
from trl_trainer import AfterStep, make_trainer


def words(prompts: list[list[int]]) -> list[str]:
  return [" ".join(f"t{token}" for token in row) for row in prompts]


def loss_of_tokens(job: dict) -> None:
  """Loss and gradient norm of `job["tokens"]`, prompts and completions together, at the weights as they are."""
  trainer = make_trainer(job, words(job["prompts"]), 1, False)
  tokens, width = torch.tensor(job["tokens"]), len(job["prompts"][0])
  prompts, completions = tokens[:, :width], tokens[:, width:]
  inputs = {
    "prompt_ids": prompts,
    "prompt_mask": torch.ones_like(prompts),
    "completion_ids": completions,
    "completion_mask": torch.ones_like(completions),
    "num_items_in_batch": torch.tensor(float(completions.numel())),
  }
  trainer.model.train()
  loss = trainer.compute_loss(trainer.model, inputs)
  loss.backward()
  # torch's own sum of eight million float32 squares is 2.5e-4 off.
  squares = sum(parameter.grad.double().square().sum() for parameter in trainer.model.parameters())
  answer(["trl", "torch"], loss=loss.item(), grad_norm=squares.sqrt().item())


def time_steps(job: dict) -> None:
  clock, generation = [], []

  def after_step(step: int) -> None:
    clock.append(cpu_seconds())
    generation.append(trainer.generation_seconds)

  steps = job["steps"] + 1
  trainer = make_trainer(job, words(job["prompts"]), steps, False, AfterStep(after_step))
  loaded, started = peak_bytes(), cpu_seconds()
  trainer.train()
  answer(
    ["trl", "torch", "transformers"],
    first=clock[0] - started,
    step=(clock[-1] - clock[0]) / job["steps"],
    generation=(generation[-1] - generation[0]) / job["steps"],
    peak_bytes=peak_bytes(),
    loaded_bytes=loaded,
  )


if __name__ == "__main__":
  given = read_job()
  if "tokens" in given:
    loss_of_tokens(given)
  else:
    time_steps(given)
