"""The embedded default: a student that sums wrongly learns to sum from a teacher, on two cores in two minutes.

Task      `a3b1c0...x2:` is continued by a chain of thought with the running sum modulo five after each letter,
          `a3=3b1=4c0=4...x2=1`: 97 new tokens. Right is what equals the whole chain.
Models    made on first use (about a minute) and kept in ~/.cache/opd_jax or $OPD_JAX_CACHE: a teacher of 2 layers
          and width 96 that solves the task, and as student the same model fine-tuned on a wrong rule.
Variants  `uniform`  the wrong rule everywhere, with probability 0.6: the gap is the same at every position
          `late`     in the last third, always: what distinguishes the teacher comes late (arXiv 2605.31490's
                     negative result: a permanently short horizon never sees it)
Method    POPD: the horizon grows from 10 tokens to 97. Exact reverse KL over the full vocabulary.
Expected  uniform: greedy exact match 2 % -> 99 to 100 %, teacher 100 %. late: 17 % -> 99 to 100 %.
Cost      about two minutes on two cores, the making of the models included.

    python -m opd_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m opd_jax.train --config=configs/quickstart.py:late --workdir=runs/late
    ... --config.horizon.kind=full                                    OPD
    ... --config.horizon.kind=truncated --config.horizon.rho=0.25     TOPD
"""

from opd_jax.config import defaults
from opd_jax.errors import InputError


def get_config(arg=""):
  """`arg`: uniform (default) or late, with `@SEED` for models of another seed; `runlocal` is uniform."""
  variant, _, seed = ("uniform" if arg in ("", "runlocal") else arg).partition("@")
  if variant not in ("uniform", "late"):
    raise InputError(f"the quickstart has no variant {variant!r}: uniform or late")
  embedded = f"arithmetic:{variant}@{seed or 0}"
  config = defaults()
  config.steps = 40

  config.student.path = f"{embedded}/student"
  config.teacher.path = f"{embedded}/teacher"
  config.data.path = f"{embedded}/train.jsonl"

  config.rollout.prompts_per_step = 32
  config.rollout.max_prompt = 49

  config.horizon.kind = "progressive"
  config.horizon.max = 97
  config.horizon.start = 10
  config.horizon.increment = 10
  config.horizon.every = 2
  config.horizon.rho = 0.25
  config.horizon.buckets = (10, 25, 49, 97)

  config.objective.kind = "reverse_kl"
  config.optimizer.learning_rate = 2e-4

  config.eval.path = f"{embedded}/eval.jsonl"
  config.eval.grader = "exact"
  config.eval.batch = 256
  config.eval.every = 10

  config.checkpoint.every = 20
  return config
