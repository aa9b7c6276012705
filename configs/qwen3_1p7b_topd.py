"""Qwen3-1.7B from Qwen3-8B on DAPO-Math-17k, truncated rollouts (TOPD, rho = 0.25).

Source    arXiv 2605.31490 for the horizon; the pair and every number marked "our choice" are ours.
Expected  nothing published for this pair.
Cost      the plan's table: python -m opd_jax.plan --config=configs/qwen3_1p7b_topd.py --topology=v5e:4x4
Run       python -m opd_jax.train --config=configs/qwen3_1p7b_topd.py:v5e-256 --workdir=runs/qwen3_1p7b_topd

The argument names the machine whose mesh and micro-batches to take (v5e-16, v5e-256, v5p-128, h200-8), or is
`runlocal`: the embedded task in place of the models, for a look on a laptop. Without one, the mesh is
fsdp x tensor = rest x 4 and a step is one micro-batch, which v5e-256 holds.
"""

from opd_jax.arithmetic.runlocal import RUNLOCAL
from opd_jax.config import choose, defaults

MACHINES = {  # fsdp is the rest
  "v5e-16": {"mesh.tensor": 4, "optimizer.micro_batches": 4},
  "v5e-256": {"mesh.tensor": 4},
  "v5p-128": {"mesh.tensor": 2},
  "h200-8": {"mesh.tensor": 1, "optimizer.micro_batches": 2},
}


def get_config(arg=""):
  c = defaults()
  c.steps = 200  # our choice
  c.student.path = "Qwen/Qwen3-1.7B"
  c.student.dtype = "bfloat16"
  c.student.remat = True
  c.teacher.path = "Qwen/Qwen3-8B"
  c.teacher.dtype = "bfloat16"
  c.data.path = "data/dapo-math-17k/train.parquet"
  c.data.prompt_field = "prompt"

  c.rollout.prompts_per_step = 64  # our choice
  c.rollout.max_prompt = 512  # our choice
  c.rollout.temperature = 1.0

  c.horizon.kind = "truncated"
  c.horizon.max = 4096  # our choice; the paper's pairs have 15,360
  c.horizon.rho = 0.25
  c.horizon.buckets = (1024, 4096)

  c.objective.kind = "reverse_kl"  # our choice; the paper takes the sampled token's
  c.optimizer.learning_rate = 2e-6  # our choice, that of arXiv 2603.25562
  c.optimizer.weight_decay = 0.01
  c.optimizer.b2 = 0.95
  c.mesh.tensor = 4  # so that 64 rows divide over 256 chips

  c.eval.path = "data/math500/test.parquet"
  c.eval.prompt_field = "prompt"
  c.eval.answer_field = "reward_model.ground_truth"
  c.eval.grader = "math"
  c.eval.batch = 64
  c.eval.every = 50
  c.checkpoint.every = 50
  return choose(c, arg, MACHINES | RUNLOCAL)
