"""Qwen3-8B-Base from Qwen3-32B on DAPO-Math-17k.

Source    the pair is a common one; every number is our choice.
Expected  nothing published at these settings.
Cost      python -m opd_jax.plan --config=configs/qwen3_8b_base_opd.py:v5p-128 --topology=v5p:4x4x8
Run       python -m opd_jax.train --config=configs/qwen3_8b_base_opd.py:v5p-128 --workdir=runs/qwen3_8b_base_opd

The argument names the machine whose mesh and micro-batches to take (v5e-16, v5e-256, v5p-128, h200-8), or is
`runlocal`: the embedded task in place of the models, for a look on a laptop. On v5e-16 models and optimizer
alone take 9.5 of 15.75 GiB a chip, and the update does not fit beside them: `plan` says so.
"""

from opd_jax.arithmetic.runlocal import RUNLOCAL
from opd_jax.config import choose, defaults

MACHINES = {  # fsdp is the rest; micro-batches only where a step's rows do not fit at once
  "v5e-16": {"mesh.tensor": 4, "optimizer.micro_batches": 64, "eval.batch": 4},
  "v5e-256": {"mesh.tensor": 4, "optimizer.micro_batches": 4, "eval.batch": 64},
  "v5p-128": {"mesh.tensor": 1, "optimizer.micro_batches": 2, "eval.batch": 128},
  "h200-8": {"mesh.tensor": 1, "optimizer.micro_batches": 32, "eval.batch": 8},
}


def get_config(arg=""):
  c = defaults()
  c.steps = 200
  c.student.path = "Qwen/Qwen3-8B-Base"
  c.student.dtype = "bfloat16"
  c.student.remat = True
  c.teacher.path = "Qwen/Qwen3-32B"
  c.teacher.dtype = "bfloat16"
  c.data.path = "data/dapo-math-17k/train.parquet"
  c.data.prompt_field = "prompt"

  c.rollout.prompts_per_step = 256
  c.rollout.max_prompt = 512

  c.horizon.kind = "truncated"
  c.horizon.max = 4096
  c.horizon.rho = 0.25
  c.horizon.buckets = (1024, 4096)

  c.objective.kind = "reverse_kl"
  c.optimizer.learning_rate = 1e-6
  c.optimizer.b2 = 0.95

  c.eval.path = "data/math500/test.parquet"
  c.eval.prompt_field = "prompt"
  c.eval.answer_field = "reward_model.ground_truth"
  c.eval.grader = "math"
  c.eval.batch = 256
  c.eval.every = 50
  c.checkpoint.every = 50
  return choose(c, arg, MACHINES | RUNLOCAL)
