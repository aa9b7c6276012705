"""Student and teacher in memory, without a run: to look at, to generate with, to score with."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from opd_jax import arithmetic, models
from opd_jax.config import DTYPES
from opd_jax.data import Finding, Tokenizer
from opd_jax.distributed import make_mesh
from opd_jax.errors import InputError
from opd_jax.models import Model
from opd_jax.pair import open_pair
from opd_jax.training.programs import Architectures
from opd_jax.training.run import check_heads


@dataclasses.dataclass(frozen=True)
class LoadedPair:
  """Two models on one mesh, and what they share.

  Attributes:
    student, teacher: in the training layout.
    mesh: of both.
    tokenizer: the student's; the teacher's gives every id the same text.
    eos_ids: ids that end the student's answer.
    vocab_size: ids that have a text; heads may be padded beyond.
    findings: what the tokenizers differ in all the same, and what to do about it.
  """

  student: Model
  teacher: Model
  mesh: Mesh
  tokenizer: Tokenizer
  eos_ids: tuple[int, ...]
  vocab_size: int
  findings: tuple[Finding, ...]


def load_pair(
  student: str,
  teacher: str,
  *,
  dtype: str = "float32",
  mesh: tuple[int, int, int] = (1, -1, 1),
  devices: Sequence[jax.Device] | None = None,
) -> LoadedPair:
  """Loads a student and its teacher straight to the shards of one mesh.

  Args:
    student, teacher: Hugging Face folders, hub ids `org/name@revision`, or `arithmetic:...` (made on first use).
    dtype: of both models' weights, float32 or bfloat16.
    mesh: sizes of its axes data, fsdp and tensor; -1: the rest of the devices.
    devices: those of the mesh; None: all there are.

  Raises InputError, before a weight is read, where the two have not one tokenizer family, a folder is damaged, or the
  mesh does not fit.
  """
  if dtype not in DTYPES:
    raise InputError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")
  placed, given = make_mesh(mesh, devices), (student, teacher)
  pair = open_pair(*map(arithmetic.outline, given))
  check_heads(Architectures(pair.student, pair.teacher), placed)
  for path in given:
    if not arithmetic.is_embedded(path):
      models.check(path)
  loaded = (models.load(arithmetic.make(path), dtype=jnp.dtype(dtype), mesh=placed) for path in given)
  return LoadedPair(*loaded, placed, pair.tokenizer, pair.eos_ids, pair.vocab_size, pair.findings)
