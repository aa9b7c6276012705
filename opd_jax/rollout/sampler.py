"""The student writes: one prefill, then a `lax.while_loop` that adds a token to every row until all are done.

The bucket is static, the horizon is a traced limit inside it: every horizon from 1 to the bucket runs in one program.

    cache slots   0 ........ P-2 | P-1 ............ P+H-2 ......... P+bucket-2
                  all but the    | one a decode step: the     never reached: still zero, masked
                  prompt's last  | prompt's last token, then
                  token: prefill | each that was drawn

The slots that a step attends grow in stages (`stage_widths`): a token costs what is there, not what may come.

The key of the token at column t of a row is folded from (seed, step, row, t), so a row's tokens do not change with its
neighbours, its padding, the bucket or the number of devices.
"""

import functools
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data import pad_left
from opd_jax.distributed import constrain, mesh_of
from opd_jax.models import Cache, Model, forward
from opd_jax.programs import ProgramTable
from opd_jax.rollout.batch import Rollout
from opd_jax.rollout.head import multiply_head, pack_head
from opd_jax.rollout.token_sampling import Sampling, sample

# The end of a sharded batch is looked for at every so many tokens: it takes a message to all devices and back.
_LOOK_EVERY = 8
_STAGES = 8  # most of them: each is a branch of the program, compiled with it
_SHORTEST_STAGE = 128
_TILE = 128  # slots that lie together in a TPU's memory


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

  Returns:
    The Rollout of R rows, tokens_bs [R, P + bucket].
  """
  B, P = prompts_bp.shape
  R = rows_r.shape[0]
  keys_r = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), row))(rows_r)
  eos_e = jnp.asarray(eos_ids, jnp.int32)
  head_vd = pack_head(model.split_head(), R)  # here, so that the loop has it ready

  def draw(hidden_rd, t):
    logits_rv = multiply_head(hidden_rd, head_vd)
    keys_t = jax.vmap(lambda key: jax.random.fold_in(key, t))(keys_r)
    return sample(constrain(logits_rv, "batch", "vocab"), keys_t, sampling, vocab_size)

  def record(state, t, token_r, logprob_r):
    """Writes column t of the rows that are still writing; a row is done once it has written end-of-sequence."""
    tokens_rs, logprob_rs, mask_rs, done_r = state
    token_r = jnp.where(done_r, 0, token_r)
    column = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=1)
    tokens_rs = column(tokens_rs, token_r[:, None])
    logprob_rs = column(logprob_rs, jnp.where(done_r, 0.0, logprob_r)[:, None])
    mask_rs = column(mask_rs, ~done_r[:, None])
    return (tokens_rs, logprob_rs, mask_rs, done_r | (token_r[:, None] == eos_e).any(-1)), token_r

  # Prefill: all slots of the prompt but the last attend among themselves; those that are padding attend nothing.
  cache = Cache.empty(model.config, B, P - 1, head_vd.dtype)
  if P > 1:
    positions_bp = jnp.maximum(jnp.cumsum(prompt_mask_bp, axis=1) - 1, 0)
    _, cache = forward(model, prompts_bp[:, :-1], positions_bp[:, :-1], prompt_mask_bp[:, :-1], cache)
  samples = R // B
  stages = stage_widths(P, bucket)
  cache = cache.fork(samples, stages[-1] - (P - 1))
  prompt_mask_rp = jnp.repeat(prompt_mask_bp, samples, axis=0)
  length_r = prompt_mask_rp.sum(1, dtype=jnp.int32)
  slots_rs = jnp.concatenate([prompt_mask_rp, jnp.ones((R, stages[-1] - P), bool)], axis=1)

  def unfinished(carry):
    t, unfinished, *_ = carry
    return (t < horizon) & unfinished

  def decode(carry):
    t, _, state, token_r, cache = carry
    slot = P - 1 + t
    hidden_r1d, cache = forward(
      model,
      token_r[:, None],
      (length_r - 1 + t)[:, None],
      slots_rs & (jnp.arange(slots_rs.shape[1]) <= slot),
      cache,
      slot,
      stages=stages,
    )
    state, token_r = record(state, t, *draw(hidden_r1d[:, 0], t))
    return t + 1, _unfinished(t, state[-1]), state, token_r, cache

  empty = (
    jnp.zeros((R, bucket), jnp.int32),
    jnp.zeros((R, bucket), jnp.float32),
    jnp.zeros((R, bucket), bool),
    jnp.zeros((R,), bool),
  )
  carry = (jnp.int32(0), jnp.bool_(True), empty, jnp.repeat(prompts_bp[:, -1], samples), cache)
  _, _, state, _, _ = jax.lax.while_loop(unfinished, decode, carry)
  tokens_rs, logprob_rs, mask_rs, done_r = state
  result = Rollout(
    tokens_bs=jnp.concatenate([jnp.repeat(prompts_bp, samples, axis=0), tokens_rs], axis=1),
    prompt_mask_bp=prompt_mask_rp,
    completion_mask_bs=mask_rs,
    truncated_b=~done_r,
    behaviour_logprob_bs=logprob_rs,
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


def _unfinished(t: jax.Array, done_r: jax.Array) -> jax.Array:
  """Whether any row still writes after column t; of a sharded batch, looked up at every `_LOOK_EVERY`th alone."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return ~done_r.all()
  look = (t + 1) % _LOOK_EVERY == 0
  return jax.lax.cond(look, lambda done_r: ~done_r.all(), lambda done_r: jnp.bool_(True), done_r)


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

  Returns:
    The Rollout; P is the longest prompt's length. Ids past `model.config.vocab_size` are never sampled.

  Raises:
    ValueError for an empty prompt, or a horizon outside 1..bucket.
  """
  if not 1 <= horizon <= bucket:
    raise ValueError(f"horizon is {horizon}: it must be at least 1 and at most the bucket {bucket}")
  if not prompts or not all(len(prompt) for prompt in prompts):
    raise ValueError("every prompt needs at least one token, and there must be at least one prompt")
  prompts_bp, prompt_mask_bp = pad_left(prompts, max(map(len, prompts)))
  seen, rows = Counter(), []
  for prompt in map(tuple, prompts):
    rows.append(zlib.crc32(np.asarray([*prompt, seen[prompt]], np.int64).tobytes()))
    seen[prompt] += 1
  sampling = Sampling(temperature, top_k, top_p)
  table = _table(sampling, tuple(eos_ids), model.config.vocab_size, mesh_of(model))
  numbers = (np.int32(horizon), np.uint32(seed), np.uint32(0), np.asarray(rows, np.uint32))
  return table.run("generate", bucket, model, prompts_bp, prompt_mask_bp, *numbers)


@functools.lru_cache(maxsize=32)
def _table(sampling: Sampling, eos_ids: tuple[int, ...], vocab_size: int, mesh) -> ProgramTable:
  table = ProgramTable(mesh)
  static = {"sampling": sampling, "eos_ids": eos_ids, "vocab_size": vocab_size}
  table.define("generate", functools.partial(sample_completions, **static))
  return table
