"""Completions of any prompts, outside a training run: padding, keys and a program table are made here."""

import functools
import math
import operator
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from opd_jax.data import pad_left
from opd_jax.distributed import mesh_of
from opd_jax.models import Model
from opd_jax.programs import ProgramTable
from opd_jax.rollout.batch import Rollout
from opd_jax.rollout.sampler import sample_completions
from opd_jax.rollout.token_sampling import Sampling


def generate(
  model: Model,
  prompts: Sequence[Sequence[int]],
  *,
  horizon: int,
  bucket: int,
  temperature: float,
  top_k: int = 0,
  top_p: float = 1.0,
  seed: int,
  eos_ids: Sequence[int],
  compactions: int = 0,
) -> Rollout:
  """Completions of prompts of any lengths, for use outside a training run.

  A row's random keys come from `seed` and its prompt (and how many equal prompts stand before it), so the order of
  the prompts does not matter.

  Args:
    prompts: token ids, at least one a prompt.
    horizon: most new tokens of a row, 1 <= horizon <= bucket.
    bucket: columns of the completion; one program is compiled per (bucket, number of prompts, longest prompt).
    temperature: 0 is greedy.
    top_k, top_p: 0 and 1 are off.
    eos_ids: ids that end a row; may be empty.
    compactions: how many times the batch may halve as rows finish: worth their compiling where few rows are long.

  Returns:
    The Rollout; P is the longest prompt's length. Ids past `model.config.vocab_size` are never sampled.

  Raises:
    ValueError for an empty prompt, one that is not of whole numbers from 0 to the vocabulary's size, a horizon outside
    1..bucket, or a temperature that is no number from 0 on.
  """
  if not 1 <= horizon <= bucket:
    raise ValueError(f"horizon is {horizon}: it must be at least 1 and at most the bucket {bucket}")
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError("every prompt needs at least one token, and there must be at least one prompt")
  vocab_size = model.config.vocab_size
  if not all(0 <= operator.index(token) < vocab_size for prompt in prompts for token in prompt):
    raise ValueError(f"a prompt has an id that is not from 0 to {vocab_size - 1}")
  if not 0 <= temperature < math.inf:
    raise ValueError(f"temperature is {temperature}: it must be a number from 0 (greedy) on")
  prompts_bp, prompt_mask_bp = pad_left(prompts, max(map(len, prompts)))
  seen, rows = Counter(), []
  for prompt in map(tuple, prompts):
    rows.append(zlib.crc32(np.asarray([*prompt, seen[prompt]], np.int64).tobytes()))
    seen[prompt] += 1
  sampling = Sampling(temperature, top_k, top_p)
  table = _table(sampling, tuple(eos_ids), vocab_size, compactions, mesh_of(model))
  numbers = (np.int32(horizon), np.uint32(seed), np.uint32(0), np.asarray(rows, np.uint32))
  return table.run("generate", bucket, model, prompts_bp, prompt_mask_bp, *numbers)


@functools.lru_cache(maxsize=32)
def _table(
  sampling: Sampling, eos_ids: tuple[int, ...], vocab_size: int, compactions: int, mesh: jax.sharding.Mesh | None
) -> ProgramTable:
  table = ProgramTable(mesh)
  static = {"sampling": sampling, "eos_ids": eos_ids, "vocab_size": vocab_size, "compactions": compactions}
  table.define("generate", functools.partial(sample_completions, **static))
  return table
