"""The teacher's canary: its own greedy answers to a few prompts, and what it made of their tokens when the run first
started. A teacher that is read wrongly, or whose weights change in memory, makes something else of them.

    prompts, answers ─► "canary" ─► log-prob of every token ─► compared with those of WORKDIR/canary.json
                            └─────► the token that the model would write in its place

One program writes and scores, without a sampler: an answer is read again and again, each time with what the model would
have written, until it stays the same. After n readings n columns are right.

    answer     . . . .     a ? ? ?     a b ? ?     a b c ?     a b c d     a b c d
                      └─►         └─►         └─►         └─►         └─►

A sampler would need fewer passes, but its compile takes longer than all of these: 33 over 4 short rows at most, about
what a teacher reads in one step of a run.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from opd_jax.config import Config
from opd_jax.data import pad_left, pad_right
from opd_jax.distributed import constrain, place_rows
from opd_jax.errors import InputError
from opd_jax.models import Model
from opd_jax.programs import ProgramTable
from opd_jax.rollout.token_sampling import MASKED
from opd_jax.scoring import score
from opd_jax.telemetry.rows import replace_file

ROWS = 4  # prompts; a constant, since their answers are compared on whatever mesh the run goes on
_COLUMNS = 32  # tokens of an answer at most

# Nats, of any one token, between two starts: another mesh, another device and another XLA add in another order. A TPU
# and a GPU multiply float32 in fewer bits than it has. A teacher that lost its weights is off by several nats.
_TOLERANCES = {"float32": 0.1, "bfloat16": 0.5}
# The share of it within one process: the same executable on the same arrays, so that most devices repeat every bit;
# what is left is for collectives that do not add in a fixed order.
_IN_MEMORY = 0.1


def file_name(route: str) -> str:
  """In the workdir: canary.json, or that of one teacher of several."""
  return f"canary.{route}.json" if route else "canary.json"


def columns(config: Config) -> int:
  """Tokens of an answer."""
  return min(_COLUMNS, config.horizon.max)


def define_programs(table: ProgramTable, vocab_size: int) -> None:
  """Enters "canary", which is `reread`, into the table."""
  table.define("canary", functools.partial(reread, vocab_size=vocab_size))


def reread(
  model: Model,
  prompts_bp: jax.Array,
  prompt_mask_bp: jax.Array,
  answers_bs: jax.Array,
  *,
  bucket: int,
  vocab_size: int,
) -> tuple[jax.Array, jax.Array]:
  """What a model makes of answers, and what it would have written.

  Args:
    model: in the training layout; its layers' weights may be in int8.
    prompts_bp: int32 [B, P], left-padded; prompt_mask_bp: bool [B, P].
    answers_bs: int32 [B, S]. A column's results depend on the prompt and the columns before it alone.
    bucket: S.
    vocab_size: ids from here on are padding of the head (static).

  Returns:
    logprob_bs, float32 [B, S]: log-prob of every token at temperature 1, in nats; best_bs, int32 [B, S]: the most
    probable token in its place. Both whole on every device.
  """
  del bucket  # the answers' own width
  hidden_bsd = score(model, prompts_bp, prompt_mask_bp, answers_bs, jnp.ones_like(answers_bs, bool))
  head_wd = model.split_head()
  ids_w = jnp.arange(head_wd.shape[0])

  def column(reading: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    hidden_bd, tokens_b = reading
    logits_bw = jnp.einsum("bd,wd->bw", hidden_bd, head_wd, preferred_element_type=jnp.float32)
    logits_bw = jnp.where(ids_w < vocab_size, constrain(logits_bw, "batch", "vocab"), MASKED)
    # A sum and not a lookup: the vocabulary may be split.
    logit_b = jnp.where(ids_w == tokens_b[:, None], logits_bw, 0.0).sum(axis=-1)
    return logit_b - jax.nn.logsumexp(logits_bw, axis=-1), jnp.argmax(logits_bw, axis=-1).astype(jnp.int32)

  # One column at a time: [B, V] is the most that there is of the logits.
  logprob_sb, best_sb = jax.lax.map(column, (hidden_bsd.swapaxes(0, 1), answers_bs.T))
  return constrain(logprob_sb.T, None, None), constrain(best_sb.T, None, None)


@dataclasses.dataclass(frozen=True)
class Reader:
  """A model with the prompts that it sees.

  Attributes:
    table: holds "canary".
    mesh: of the model.
    model: in the training layout.
    prompts: token ids of ROWS prompts.
    width: P, columns of a prompt.
    columns: S, tokens of an answer.
  """

  table: ProgramTable
  mesh: Mesh
  model: Model
  prompts: tuple[tuple[int, ...], ...]
  width: int
  columns: int

  def read(self, answers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """`reread` of the answers, each of at most S tokens, on the host and on every process: [ROWS, S] both. Columns
    after the end of an answer mean nothing."""
    answers_bs, _ = pad_right(answers, self.columns)
    arrays = place_rows(self.mesh, (*pad_left(self.prompts, self.width), answers_bs))
    return jax.device_get(self.table.run("canary", self.columns, self.model, *arrays))

  def write(self) -> tuple[np.ndarray, np.ndarray]:
    """Greedy answers, int32 [ROWS, S], that nothing ends, and the log-prob of every token."""
    best_bs = np.zeros((len(self.prompts), self.columns), np.int32)
    for _ in range(self.columns + 1):
      answers_bs = best_bs
      logprob_bs, best_bs = self.read(answers_bs)
      if np.array_equal(best_bs, answers_bs):
        break
    return answers_bs, logprob_bs


def cut(answers_bs: np.ndarray, eos_ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  """The answers as token ids, each through the first that ends it."""
  ends_bs = np.isin(answers_bs, eos_ids)
  kept_bs = ends_bs.cumsum(axis=1) - ends_bs == 0
  return tuple(tuple(row[kept].tolist()) for row, kept in zip(answers_bs, kept_bs))


@dataclasses.dataclass(frozen=True)
class Canary:
  """What the teacher is compared with: a row a prompt.

  Attributes:
    prompts: token ids, as the teacher sees them.
    answers: token ids of its greedy answers.
    logprobs: of each of these tokens, in nats.
    tolerance: by how much any of them may differ.
  """

  prompts: tuple[tuple[int, ...], ...]
  answers: tuple[tuple[int, ...], ...]
  logprobs: tuple[tuple[float, ...], ...]
  tolerance: float

  @classmethod
  def of(
    cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], logprob_bs: np.ndarray, dtype: str
  ) -> "Canary":
    """From what a teacher of this dtype was read to say."""
    found = tuple(tuple(row[: len(ids)].tolist()) for row, ids in zip(logprob_bs, answers, strict=True))
    return cls(tuple(prompts), tuple(answers), found, _TOLERANCES[dtype])

  def difference(self, logprob_bs: np.ndarray) -> float:
    """The largest difference to what is read now; infinity where that is no number."""
    pairs = zip(self.logprobs, logprob_bs, strict=True)
    d = np.concatenate([np.asarray(known) - now[: len(known)] for known, now in pairs])
    return float(np.abs(d).max()) if np.isfinite(d).all() else np.inf

  def in_memory(self, logprob_bs: np.ndarray) -> "Canary":
    """The same answers with this process's numbers, and what may differ from them until it ends."""
    here = tuple(tuple(now[: len(known)].tolist()) for known, now in zip(self.logprobs, logprob_bs, strict=True))
    return dataclasses.replace(self, logprobs=here, tolerance=_IN_MEMORY * self.tolerance)

  def save(self, workdir: Path, route: str = "") -> None:
    """`file_name`, in one go."""
    rows = zip(self.prompts, self.answers, self.logprobs, strict=True)
    content = {"tolerance": self.tolerance, "rows": [dict(zip(("prompt", "answer", "logprobs"), row)) for row in rows]}
    replace_file(workdir / file_name(route), json.dumps(content, allow_nan=False) + "\n")

  @classmethod
  def load(cls, workdir: Path, route: str = "") -> "Canary":
    """Raises InputError where the file is not what `save` writes."""
    path = workdir / file_name(route)
    try:
      content = json.loads(path.read_text())
      parts = [tuple(tuple(row[name]) for row in content["rows"]) for name in ("prompt", "answer", "logprobs")]
      canary = cls(*parts, float(content["tolerance"]))
      if not all(len(ids) == len(known) > 0 for ids, known in zip(canary.answers, canary.logprobs)):
        raise ValueError("answers and log-probs do not go together")
      return canary
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
      raise InputError(
        f"{path} is damaged ({type(error).__name__}: {error}): move it away, and the teacher as it is now will be what "
        "it is compared with"
      ) from error
