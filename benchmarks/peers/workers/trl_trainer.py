"""TRL's DistillationTrainer as both of its workers use it: reverse KL, float32, AdamW, nothing logged or saved."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from meter import cpu_seconds
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

NO_ID = -1


class Trainer(DistillationTrainer):
  """Adds up the CPU-seconds that generation takes: tokenization, `generate`, cutting at end of sequence."""

  generation_seconds = 0.0

  def _generate(self, prompts):
    started = cpu_seconds()
    result = super()._generate(prompts)
    self.generation_seconds += cpu_seconds() - started
    return result


class AfterStep(TrainerCallback):
  """Calls `hook(step)` after each update, step counted from 1."""

  def __init__(self, hook: Callable[[int], None]):
    self._hook = hook

  def on_step_end(self, args, state, control, **kwargs):
    self._hook(state.global_step)


class HorizonSchedule(TrainerCallback):
  """What POPD costs a user of TRL: the lines that set the next rollout's length before each step."""

  trainer: Trainer

  def __init__(self, horizon: Callable[[int], int]):
    self._horizon = horizon

  def on_step_begin(self, args, state, control, **kwargs):
    horizon = self._horizon(state.global_step)
    self.trainer.generation_config.max_new_tokens = horizon
    self.trainer.generation_kwargs["max_new_tokens"] = horizon
    self.trainer.max_completion_length = horizon


def make_trainer(
  job: dict[str, Any], prompts: list[str], steps: int, ends: bool, *callbacks: TrainerCallback
) -> Trainer:
  """A trainer that takes `prompts` in order, `job["rows"]` a step.

  `job`: student, teacher, rows, horizon, learning_rate, checkpointing. `ends`: whether end of sequence ends a
  completion; otherwise all have the same length.
  """
  torch.set_num_threads(1)
  models = [AutoModelForCausalLM.from_pretrained(job[role], dtype=torch.float32) for role in ("student", "teacher")]
  arguments = DistillationConfig(
    output_dir=tempfile.mkdtemp(),
    use_cpu=True,
    bf16=False,
    seed=job.get("seed", 0),
    max_steps=steps,
    per_device_train_batch_size=job["rows"],
    shuffle_dataset=False,
    max_completion_length=job["horizon"],
    beta=1.0,
    temperature=1.0,
    learning_rate=job["learning_rate"],
    lr_scheduler_type="constant",
    weight_decay=0.0,
    max_grad_norm=1.0,
    gradient_checkpointing=job["checkpointing"],
    generation_kwargs=None if ends else {"eos_token_id": None},
    logging_strategy="no",
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
  )
  trainer = Trainer(
    model=models[0],
    teacher_model=models[1],
    args=arguments,
    train_dataset=Dataset.from_dict({"prompt": prompts}),
    processing_class=AutoTokenizer.from_pretrained(job["student"], padding_side="left"),
    callbacks=list(callbacks),
  )
  trainer.remove_callback(PrinterCallback)
  for callback in callbacks:
    if isinstance(callback, HorizonSchedule):
      callback.trainer = trainer
  if not ends:
    trainer.eos_token_ids = [NO_ID]
  return trainer
