"""What `:runlocal` makes of a config: the same path, method and objective on the embedded task, in a minute."""

import ml_collections


def run_locally(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config with the embedded models and prompts in place of its own, and few and short steps. Changes its input."""
  c = config
  c.steps = 4
  c.student.path = "arithmetic:uniform/student"
  c.teacher.path = "arithmetic:uniform/teacher"
  c.data.path = "arithmetic:uniform/train.jsonl"
  c.data.prompt_field = "prompt"
  c.rollout.prompts_per_step = 8
  c.rollout.samples_per_prompt = 1
  c.rollout.max_prompt = 64
  c.horizon.max = 128
  c.horizon.start = 32
  c.horizon.increment = 32
  c.horizon.every = 1
  c.horizon.buckets = (32, 128)
  c.optimizer.micro_batches = 1
  c.mesh.tensor = 1
  c.eval.path = ""
  c.checkpoint.every = 4
  return c
