"""The student writes: one prefill, then a `lax.while_loop` that adds a token to every row until all are done.

The bucket is static, the horizon is a traced limit inside it: every horizon from 1 to the bucket runs in one program.

    cache slots   0 ........ P-2 | P-1 ............ P+H-2 ......... P+bucket-2
                  all but the    | one a decode step: the     never reached: still zero, masked
                  prompt's last  | prompt's last token, then
                  token: prefill | each that was drawn

The slots that a step attends grow in stages (`stage_widths`): a token costs what is there, not what may come. Rows that
are done can leave (`compaction`): a step costs those that still write.

The key of the token at column t of a row is folded from (seed, step, row, t), so a row's tokens do not change with its
neighbours, its padding, the bucket or the number of devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from opd_jax.distributed import constrain
from opd_jax.models import Cache, Model, forward
from opd_jax.rollout import compaction
from opd_jax.rollout.batch import Rollout
from opd_jax.rollout.head import multiply_head, pack_head
from opd_jax.rollout.token_sampling import Drawn, Sampling, sample

# The end of a sharded batch is looked for at every so many tokens: it takes a message to all devices and back.
_LOOK_EVERY = 8
_STAGES = 8  # most of them: each is a branch of the program, compiled with it
_SHORTEST_STAGE = 128
_TILE = 128  # slots that lie together in a TPU's memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rows:
  """What stays of R rows: their random keys, the lengths of their prompts, and the slots that are not padding."""

  key_r: jax.Array
  length_r: jax.Array
  slots_rs: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Written:
  """What R rows have written: the token before the next column, and the columns of the Rollout."""

  last_r: jax.Array
  tokens_rs: jax.Array
  logprob_rs: jax.Array
  mask_rs: jax.Array
  done_r: jax.Array
  entropy_rs: jax.Array | None

  @classmethod
  def nothing(cls, last_r: jax.Array, bucket: int, entropy: bool) -> "_Written":
    wide = (len(last_r), bucket)
    columns = jnp.zeros(wide, jnp.int32), jnp.zeros(wide, jnp.float32), jnp.zeros(wide, bool)
    return cls(last_r, *columns, jnp.zeros(len(last_r), bool), jnp.zeros(wide, jnp.float32) if entropy else None)

  def record(self, t, drawn: Drawn, eos_e: jax.Array) -> "_Written":
    """With column t of the rows that are still writing; a row is done once it has written end-of-sequence."""

    def column(array_rs: jax.Array, value_r: jax.Array) -> jax.Array:
      value_r = jnp.where(self.done_r, jnp.zeros_like(value_r), value_r)
      return jax.lax.dynamic_update_slice_in_dim(array_rs, value_r[:, None], t, axis=1)

    token_r = jnp.where(self.done_r, 0, drawn.tokens_b)
    return _Written(
      last_r=token_r,
      tokens_rs=column(self.tokens_rs, token_r),
      logprob_rs=column(self.logprob_rs, drawn.logprob_b),
      mask_rs=column(self.mask_rs, jnp.ones_like(self.done_r)),
      done_r=self.done_r | (token_r[:, None] == eos_e).any(-1),
      entropy_rs=None if self.entropy_rs is None else column(self.entropy_rs, drawn.entropy_b),
    )


def sample_completions(
  model: Model,
  prompts_bp: jax.Array,
  prompt_mask_bp: jax.Array,
  horizon: jax.Array,
  seed: jax.Array,
  step: jax.Array,
  rows_r: jax.Array,
  *,
  bucket: int,
  sampling: Sampling,
  eos_ids: tuple[int, ...],
  vocab_size: int,
  compactions: int = 0,
  entropy: bool = False,
) -> Rollout:
  """Generates up to `horizon` tokens for R rows: R / B samples of each of B prompts, which share one prefill.

  Args:
    model: the student, in the dtype of the computation and (on a mesh) best in the decode layout.
    prompts_bp: int32 [B, P], left-padded.
    prompt_mask_bp: bool [B, P], true on prompt tokens; every row has at least one.
    horizon: int32 scalar, 1 <= horizon <= bucket (traced).
    seed, step: uint32 scalars of the random keys.
    rows_r: uint32 [R], what tells this row's keys from others'; the samples of a prompt are neighbours.
    bucket: static width of the completion, in tokens.
    sampling: temperature, top-k, top-p (static).
    eos_ids: ids that end a row (static); the row's completion includes the one that ended it.
    vocab_size: ids from here on are never sampled (static).
    compactions: how many times the batch may halve as rows finish (static; `compaction`).
    entropy: also the softmax's entropy at every token (static).

  Returns:
    The Rollout of R rows, tokens_bs [R, P + bucket].
  """
  B, P = prompts_bp.shape
  R = rows_r.shape[0]
  head_vd = pack_head(model.split_head(), R)  # here, so that the loop has it ready
  eos_e = jnp.asarray(eos_ids, jnp.int32)

  # Prefill: all slots of the prompt but the last attend among themselves; those that are padding attend nothing.
  cache = Cache.empty(model.config, B, P - 1, head_vd.dtype)
  if P > 1:
    positions_bp = jnp.maximum(jnp.cumsum(prompt_mask_bp, axis=1) - 1, 0)
    _, cache = forward(model, prompts_bp[:, :-1], positions_bp[:, :-1], prompt_mask_bp[:, :-1], cache)
  samples = R // B
  stages = stage_widths(P, bucket)
  cache = cache.fork(samples, stages[-1] - (P - 1))
  prompt_mask_rp = jnp.repeat(prompt_mask_bp, samples, axis=0)

  def decode(rows: _Rows, t, written: _Written, cache: Cache) -> tuple[_Written, Cache]:
    """Column t of the rows, from the token before it."""
    slot = P - 1 + t
    # A row that is done sees nothing: a kernel does not read its slots.
    seen_rs = rows.slots_rs & (jnp.arange(stages[-1]) <= slot) & ~written.done_r[:, None]
    positions_r1 = (rows.length_r - 1 + t)[:, None]
    hidden_r1d, cache = forward(model, written.last_r[:, None], positions_r1, seen_rs, cache, slot, stages=stages)
    logits_rv = constrain(multiply_head(hidden_r1d[:, 0], head_vd), "batch", "vocab")
    keys_r = jax.vmap(lambda key: jax.random.fold_in(key, t))(rows.key_r)
    return written.record(t, sample(logits_rv, keys_r, sampling, vocab_size), eos_e), cache

  def write(rows: _Rows, t, left, written: _Written, cache: Cache, batches: tuple[int, ...]) -> _Written:
    """All columns from t on. `left` rows of a device still write; once they fit the next of `batches`, they move."""
    few = batches[0] if batches else 0

    def advance(carry):
      t, left, written, cache = carry
      written, cache = decode(rows, t, written, cache)
      return t + 1, _look(t, left, written.done_r), written, cache

    carry = (t, left, written, cache)
    t, left, written, cache = jax.lax.while_loop(lambda c: (c[0] < horizon) & (c[1] > few), advance, carry)
    if not batches:
      return written

    def move(written: _Written, cache: Cache) -> _Written:
      kept_dk = compaction.choose(written.done_r, few)
      take = functools.partial(compaction.take, kept_dk=kept_dk)
      fewer, part = jax.tree.map(take, (rows, written))
      part = write(fewer, t, left, part, cache.map_rows(take), batches[1:])
      return jax.tree.map(lambda whole, part: compaction.put(whole, kept_dk, part), written, part)

    return jax.lax.cond((t < horizon) & (left > 0), move, lambda written, cache: written, written, cache)

  rows = _Rows(
    key_r=jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), row))(rows_r),
    length_r=prompt_mask_rp.sum(1, dtype=jnp.int32),
    slots_rs=jnp.concatenate([prompt_mask_rp, jnp.ones((R, stages[-1] - P), bool)], axis=1),
  )
  written = _Written.nothing(jnp.repeat(prompts_bp[:, -1], samples), bucket, entropy)
  batches = compaction.smaller_batches(R, compactions)
  written = write(rows, jnp.int32(0), compaction.most_left(written.done_r), written, cache, batches)
  result = Rollout(
    tokens_bs=jnp.concatenate([jnp.repeat(prompts_bp, samples, axis=0), written.tokens_rs], axis=1),
    prompt_mask_bp=prompt_mask_rp,
    completion_mask_bs=written.mask_rs,
    truncated_b=~written.done_r,
    behaviour_logprob_bs=written.logprob_rs,
    behaviour_entropy_bs=written.entropy_rs,
  )
  return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), result)


def stage_widths(prompt: int, bucket: int) -> tuple[int, ...]:
  """Numbers of cache slots, ascending, of which each decode step attends the fewest that hold its token.

  P = 32, bucket = 2048     384, 640, 896, ..., 2176: the prompt but its last token, and 256, 512, ... more, in tiles

  All of them are whole tiles where there is more than one: a TPU would copy the whole cache into another layout in
  order to cut it elsewhere.
  """
  step = max(_SHORTEST_STAGE, -(-bucket // _STAGES))
  widths = [prompt - 1 + min(new, bucket) for new in range(step, bucket + step, step)]
  if len(widths) == 1:
    return tuple(widths)
  return tuple(sorted({-(-width // _TILE) * _TILE for width in widths}))


def _look(t: jax.Array, left: jax.Array, done_r: jax.Array) -> jax.Array:
  """How many rows still write after column t; of a sharded batch, looked up at every `_LOOK_EVERY`th column alone."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return compaction.most_left(done_r)
  look = (t + 1) % _LOOK_EVERY == 0
  return jax.lax.cond(look, compaction.most_left, lambda done_r: left, done_r)
