"""The teacher as a run uses it, and what it costs the signal where its layers are kept in int8.

full precision ─► hidden states of the first prompts ─┐
  │ parameter by parameter                            ├─► KL(full || int8) at every prompt position
int8           ─► hidden states of the same prompts ──┘   (one head for both: it stays as it is)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import models
from opd_jax.data import pad_right
from opd_jax.distributed import place_rows
from opd_jax.models import Model
from opd_jax.objectives import Call, Reading, diverge
from opd_jax.scoring import score
from opd_jax.telemetry.metrics import Ratio
from opd_jax.training.run import OpenRun
from opd_jax.training.state import Frozen


def load_frozen(run: OpenRun) -> tuple[Frozen, dict[str, float]]:
  """The models on the run's mesh that do not change, and the metrics of `load_teacher`: of several teachers, the
  largest."""
  c, teachers, about = run.config, {}, {}
  for name in () if c.teacher.ema else run.teachers:
    teachers[name], metrics = load_teacher(run, name)
    about = {key: max(value, about.get(key, value)) for key, value in metrics.items()}
  reference = None
  if run.reference_path:
    reference = models.load(run.reference_path, dtype=jnp.dtype(c.reference.dtype), mesh=run.mesh)
  return Frozen(next(iter(teachers.values()), None), reference, teachers if run.routes else None), about


def load_teacher(run: OpenRun, name: str = "") -> tuple[Model, dict[str, float]]:
  """The only teacher, or the one of that name, on the run's mesh, and metrics about it.

  Under `teacher.int8` these are `teacher_int8_kl` and `teacher_int8_kl_max`: mean and largest KL(full || int8) in nats
  a token, over the positions of the run's first prompts that predict a prompt token. Otherwise there are none.
  """
  config = run.config
  teacher = models.load(run.teachers[name].path, dtype=jnp.dtype(config.teacher.dtype), mesh=run.mesh)
  teacher = dataclasses.replace(teacher, config=run.pair.teacher)  # of several, so that one program takes any
  if not config.teacher.int8:
    return teacher, {}
  prompts = place_rows(run.mesh, _first_prompts(run))

  def compare(full_bsd: jax.Array, teacher: Model, *prompts: jax.Array) -> tuple[Ratio, jax.Array]:
    _, _, rest_bs, rest_mask_bs = prompts
    full, int8 = (Reading(hidden_bsd, teacher.split_head()) for hidden_bsd in (full_bsd, score(teacher, *prompts)))
    call = Call(rest_mask_bs.astype(jnp.float32), "reverse_kl")
    kl_bs = diverge(call, full, int8, rest_bs, run.pair.vocab_size).per_token
    return Ratio.of(kl_bs, rest_mask_bs), jnp.max(jnp.where(rest_mask_bs, kl_bs, 0.0))

  with jax.set_mesh(run.mesh):
    full_bsd = jax.block_until_ready(jax.jit(score)(teacher, *prompts))
    teacher = models.quantize_and_free(teacher)
    mean, largest = jax.device_get(jax.jit(compare)(full_bsd, teacher, *prompts))
  return teacher, {"teacher_int8_kl": mean.to_float(), "teacher_int8_kl_max": float(largest)}


def marked_as(name: str) -> str:
  """What a teacher is called in eval.jsonl: the only one, whose name is "", `teacher`."""
  return f"teacher {name}" if name else "teacher"


def _first_prompts(run: OpenRun) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Those of step 1 as `score` takes them: the first token as the prompt, the others as if they had been written."""
  c = run.config.rollout
  chosen = run.stream.take(0, c.prompts_per_step)
  tokens_bp, mask_bp = pad_right([run.prompts.token_ids[i] for i in chosen], max(2, c.max_prompt))
  return tokens_bp[:, :1], mask_bp[:, :1], tokens_bp[:, 1:], mask_bp[:, 1:]
