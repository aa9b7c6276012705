"""OpenMath-Nemotron-1.5B from JustRL-Nemotron-1.5B: OPD, POPD and TOPD at T = 15,360.

Source    arXiv 2605.31490: the pair, T, rho = 0.25 and 0.1, the objective, AIME24 as the test set, avg@16 (from
          second-hand notes of it). What they do not state is marked "our choice".
Expected  no number of this pair was at hand.
Cost      python -m opd_jax.plan --config=configs/justrl_nemotron_1p5b.py:topd25,v5e-256 --topology=v5e:16x16
Run       python -m opd_jax.train --config=configs/justrl_nemotron_1p5b.py:topd25,v5e-256 --workdir=runs/topd25

The argument is a list: a method (opd, popd, topd25, topd10; without one topd25), a machine (v5e-16, v5e-256, v5p-128,
h200-8), or `runlocal` for the embedded task in place of the models. The update's attention is dense, [rows,
heads, T, T]: at the full T a v5e-16 is too small for it, whatever the mesh, and `plan` says so.
"""

from opd_jax.arithmetic.runlocal import RUNLOCAL
from opd_jax.config import choose, defaults

METHODS = {
  "opd": {"horizon.kind": "full"},
  "popd": {"horizon.kind": "progressive"},
  "topd25": {"horizon.kind": "truncated", "horizon.rho": 0.25},
  "topd10": {"horizon.kind": "truncated", "horizon.rho": 0.1},
}
MACHINES = {  # fsdp is the rest; 12 query heads split over tensor = 1, 2, 4
  "v5e-16": {"mesh.tensor": 2, "optimizer.micro_batches": 16, "eval.batch": 8},
  "v5e-256": {"mesh.tensor": 4, "optimizer.micro_batches": 2, "eval.batch": 64},
  "v5p-128": {"mesh.tensor": 4, "optimizer.micro_batches": 4, "eval.batch": 32},
  "h200-8": {"mesh.tensor": 1, "optimizer.micro_batches": 16, "eval.batch": 8},
}


def get_config(arg=""):
  c = defaults()
  c.steps = 200  # our choice
  c.student.path = "nvidia/OpenMath-Nemotron-1.5B"
  c.student.dtype = "bfloat16"
  c.student.remat = True
  c.teacher.path = "hbx/JustRL-Nemotron-1.5B"
  c.teacher.dtype = "bfloat16"
  c.data.path = "data/dapo-math-17k/train.parquet"  # our choice
  c.data.prompt_field = "prompt"

  c.rollout.prompts_per_step = 128  # our choice
  c.rollout.max_prompt = 1024  # our choice
  c.rollout.temperature = 1.0  # our choice

  c.horizon.kind = "truncated"
  c.horizon.max = 15360
  c.horizon.rho = 0.25
  c.horizon.start = 1536  # of popd, our choice: from 10 % of T
  c.horizon.increment = 1536  # our choice
  c.horizon.every = 10  # our choice
  c.horizon.buckets = (1536, 3840, 7680, 15360)

  c.objective.kind = "sampled"
  c.optimizer.learning_rate = 1e-6  # our choice
  c.optimizer.b2 = 0.95  # our choice

  c.eval.path = "data/aime24/test.parquet"
  c.eval.prompt_field = "prompt"
  c.eval.answer_field = "reward_model.ground_truth"
  c.eval.grader = "math"
  c.eval.greedy = False
  c.eval.samples = 16
  c.eval.temperature = 0.7  # that of JustRL's own evaluation
  c.eval.top_p = 0.95
  c.eval.batch = 128
  c.eval.every = 50  # our choice
  c.checkpoint.every = 50  # our choice
  return choose(c, arg, METHODS | MACHINES | RUNLOCAL)
