"""Qwen2.5-0.5B from Qwen2.5-7B-Instruct on GSM8K.

Source    the pair is a common one; every number is our choice.
Expected  nothing published at these settings.
Cost      python -m opd_jax.plan --config=configs/qwen2p5_0p5b_gsm8k.py:v5e-16 --topology=v5e:4x4
Run       python -m opd_jax.train --config=configs/qwen2p5_0p5b_gsm8k.py:h200-8 --workdir=runs/qwen2p5_0p5b_gsm8k

The argument names the machine whose mesh and micro-batches to take (v5e-16, v5e-256, v5p-128, h200-8), or is
`runlocal`: the embedded task in place of the models, for a look on a laptop.
"""

from opd_jax.arithmetic.runlocal import RUNLOCAL
from opd_jax.config import choose, defaults

MACHINES = {  # fsdp is the rest; 14 and 28 query heads split over tensor = 1 and 2
  "v5e-16": {"mesh.tensor": 1, "optimizer.micro_batches": 2},
  "v5e-256": {"mesh.tensor": 2},
  "v5p-128": {"mesh.tensor": 1},
  "h200-8": {"mesh.tensor": 1},
}


def get_config(arg=""):
  c = defaults()
  c.steps = 500
  c.student.path = "Qwen/Qwen2.5-0.5B"
  c.student.dtype = "bfloat16"
  c.student.remat = True
  c.teacher.path = "Qwen/Qwen2.5-7B-Instruct"
  c.teacher.dtype = "bfloat16"
  c.data.path = "data/gsm8k/train.jsonl"
  c.data.prompt_field = "question"
  c.data.answer_field = "answer"

  c.rollout.prompts_per_step = 128
  c.rollout.max_prompt = 256

  c.horizon.kind = "progressive"
  c.horizon.max = 512
  c.horizon.start = 64
  c.horizon.increment = 64
  c.horizon.every = 20
  c.horizon.buckets = (128, 256, 512)

  c.objective.kind = "reverse_kl"
  c.optimizer.learning_rate = 5e-6
  c.optimizer.b2 = 0.95

  c.eval.path = "data/gsm8k/test.jsonl"
  c.eval.prompt_field = "question"
  c.eval.answer_field = "answer"
  c.eval.grader = "gsm8k"
  c.eval.batch = 128
  c.eval.every = 100
  return choose(c, arg, MACHINES | RUNLOCAL)
