"""How far student and teacher are apart at each token of the few answers that are logged: the colours of a report.

    answer            a3 = 3 b1 = 4 c0 = 2         tokens, each with its text
    KL(student||teacher)   0 .1  0  0 .1  0  0 2.3      nats, over the whole vocabulary, at temperature 1

One program of the run's table, "token_kl", reads a few rows with both models as they are scored in training. Answers
longer than its columns are coloured as far as these go.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from opd_jax.config import Config
from opd_jax.data import pad_left, pad_right
from opd_jax.distributed import fetch, place_rows
from opd_jax.models import Model
from opd_jax.objectives import Call, Reading, diverge
from opd_jax.programs import ProgramTable
from opd_jax.scoring import score

_COLUMNS = 512  # tokens of an answer that are looked at: a report shows little more


def shape(config: Config, mesh: Mesh | AbstractMesh) -> tuple[int, int]:
  """(rows, columns) of the answers that the program reads: `log.samples`, rounded up to what the mesh divides."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  return -(-config.log.samples // parts) * parts, min(_COLUMNS, config.horizon.max)


def define_programs(table: ProgramTable, config: Config, vocab_size: int) -> None:
  """Enters "token_kl", which is `token_kl`, into the table."""
  dtypes = {"dtype": jnp.dtype(config.student.dtype), "teacher_dtype": jnp.dtype(config.teacher.dtype)}
  table.define("token_kl", functools.partial(token_kl, vocab_size=vocab_size, **dtypes))


def token_kl(
  student: Model,
  teacher: Model,
  prompts_bp: jax.Array,
  prompt_mask_bp: jax.Array,
  completions_bs: jax.Array,
  completion_mask_bs: jax.Array,
  *,
  bucket: int,
  vocab_size: int,
  dtype,
  teacher_dtype,
) -> jax.Array:
  """KL(student || teacher) in nats at every token of completions, float32 [B, S]; off the mask it means nothing.

  Args:
    student, teacher: in the training layout; they are computed with in `dtype` and `teacher_dtype`.
    prompts_bp: int32 [B, P], left-padded; prompt_mask_bp: bool [B, P].
    completions_bs: int32 [B, S]; completion_mask_bs: bool [B, S], true on a prefix of each row.
    bucket: S.
    vocab_size: ids from here on are padding of the heads (static).
  """
  del bucket  # the completions' own width
  arrays = prompts_bp, prompt_mask_bp, completions_bs, completion_mask_bs
  models = student.astype(dtype), teacher.astype(teacher_dtype)
  readings = (Reading(score(model, *arrays), model.split_head()) for model in models)
  call = Call(completion_mask_bs.astype(jnp.float32), "reverse_kl")
  return diverge(call, *readings, completions_bs, vocab_size).per_token


def measure(
  config: Config,
  table: ProgramTable,
  mesh: Mesh,
  student: Model,
  teacher: Model,
  prompts: Sequence[Sequence[int]],
  answers: Sequence[Sequence[int]],
) -> list[np.ndarray]:
  """`token_kl` of the first tokens of at most `log.samples` answers, one array an answer; on every process."""
  rows, columns = shape(config, mesh)
  answers = [ids[:columns] for ids in answers]
  fill = rows - len(answers)
  prompts_bp, prompt_mask_bp = pad_left([*prompts, *[prompts[0]] * fill], config.rollout.max_prompt)
  completions = pad_right([*answers, *[()] * fill], columns)
  arrays = place_rows(mesh, (prompts_bp, prompt_mask_bp, *completions))
  kl_bs = fetch(table.run("token_kl", columns, student, teacher, *arrays))
  return [kl_s[: len(ids)] for kl_s, ids in zip(kl_bs, answers)]
