"""Qwen2.5-7B-Instruct from OpenThinker3-7B: the sampled-token baseline of "Revisiting OPD", and its remedies.

Source    arXiv 2603.25562, table A1 (2048 + 16384 tokens, 16 prompts x 8, T = 1, AdamW 2e-6, no warm-up, 400 steps) and
          its code (constant rate, clip 1.0, weight decay 0.01). The paper's two updates per rollout are one here.
Expected  table 1, pass@1 of single runs:    MATH500   AIME24   AIME25
            the baseline                        80.0     10.0     16.7
            mask                                81.4     26.7     16.7
            lsm                                 80.4     23.3     26.7
            lsm,mask                            82.0     23.3     23.3
Cost      python -m opd_jax.plan --config=configs/openthinker3_7b.py:lsm,mask,v5p-128 --topology=v5p:4x4x8
Run       python -m opd_jax.train --config=configs/openthinker3_7b.py:lsm,mask,v5p-128 --workdir=runs/openthinker3_7b

The argument holds any of: `lsm`, `mask`; the machine whose mesh and micro-batches to take (v5e-16, v5e-256, v5p-128,
h200-8), or `runlocal`: the embedded task in place of the models, for a look on a laptop.
"""

from opd_jax.arithmetic.runlocal import RUNLOCAL
from opd_jax.config import choose, defaults

METHODS = {
  "lsm": {"objective.kind": "lsm", "objective.top_k": 32, "rollout.top_p": 0.9},
  "mask": {"objective.mask_first": ("<", "think", "<|im_end|>")},
}
MACHINES = {  # 28 query heads split over tensor = 1, 2, 4; 128 rows a step on each machine
  "v5e-16": {"mesh.tensor": 4, "optimizer.micro_batches": 32, "eval.batch": 4},
  "v5e-256": {
    "mesh.tensor": 4,
    "rollout.prompts_per_step": 64,
    "rollout.samples_per_prompt": 2,
    "optimizer.micro_batches": 2,
    "eval.batch": 64,
  },
  "v5p-128": {
    "mesh.tensor": 4,
    "rollout.prompts_per_step": 32,
    "rollout.samples_per_prompt": 4,
    "optimizer.micro_batches": 4,
    "eval.batch": 32,
  },
  "h200-8": {"mesh.tensor": 4, "optimizer.micro_batches": 64, "eval.batch": 8},
}


def get_config(arg=""):
  c = defaults()
  c.steps = 400
  c.student.path = "Qwen/Qwen2.5-7B-Instruct"
  c.student.dtype = "bfloat16"
  c.student.remat = True
  c.teacher.path = "open-thoughts/OpenThinker3-7B"
  c.teacher.dtype = "bfloat16"
  c.data.path = "data/dapo-math-17k/train.parquet"
  c.data.prompt_field = "prompt"

  c.rollout.prompts_per_step = 16
  c.rollout.samples_per_prompt = 8
  c.rollout.max_prompt = 2048
  c.rollout.temperature = 1.0

  c.horizon.kind = "full"
  c.horizon.max = 16384
  c.horizon.buckets = (16384,)

  c.objective.kind = "sampled"
  c.optimizer.learning_rate = 2e-6
  c.optimizer.weight_decay = 0.01
  c.optimizer.clip = 1.0

  c.eval.path = "data/math500/test.parquet"
  c.eval.prompt_field = "prompt"
  c.eval.answer_field = "reward_model.ground_truth"
  c.eval.grader = "math"
  c.eval.batch = 16  # our choice
  c.eval.every = 100  # our choice
  c.checkpoint.every = 50  # our choice
  return choose(c, arg, METHODS | MACHINES | RUNLOCAL)
