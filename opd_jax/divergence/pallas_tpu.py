"""The divergence as Pallas kernels for TPU: 4 matrix products, with the logits of a chunk written once.

    statistics   grid (tokens, vocab): z, y in VMEM -> row sums; with a gradient to come also keeps, in HBM,
                 z - m_s and (z - m_s) - (y - m_t), relative to the running maxima of their tile
    d_hidden     grid (tokens, vocab): kept tile -> dz -> dH += dz W
    d_head       grid (vocab, tokens): kept tile -> dz -> dW += dz^T h, added to the sum over earlier chunks in place

Without a gradient only the first kernel runs and nothing of [T, V] reaches HBM. A row's running sums live in the lanes
of one (tokens, 128) scratch, because one-dimensional blocks do not tile. The vocabulary is never padded: the last tile
reads past the head, and what it reads (anything, NaN too) is *selected* away, in both operands of a product over it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from opd_jax.divergence import formulas, passes, token_chunk
from opd_jax.divergence.blocks import Blocks, cut, dot, is_short, squash, squash_slope
from opd_jax.divergence.problem import MASKED, Inputs, Problem

_LANES = 128
# Scoped VMEM to ask for: v5p has 64 MiB in all, v5e and v6e 128.
_VMEM_BYTES = 60 << 20
# Of the elementwise pass that jsd makes over what was kept.
_SECOND_PASS_BLOCK = 8192
# What a chunk keeps is the largest temporary: 1024 tokens of 152k entries in bf16.
_SIZES = token_chunk.Sizes(chunk_bytes=640 << 20, tokens=512, block=1 << 30)


def tile_for(student_width: int, teacher_width: int, itemsize: int) -> tuple[int, int]:
  """(tokens, vocabulary rows) of a tile: what two copies of both models' operands leave room for."""
  for tokens, rows in ((512, 1024), (512, 512), (256, 512), (256, 256), (128, 128)):
    operands = 2 * (tokens + rows) * (student_width + teacher_width) * itemsize
    if operands + 6 * tokens * rows * 4 <= _VMEM_BYTES:
      return tokens, rows
  return 128, 128


def rows_and_gradients(
  problem: Problem,
  inputs: Inputs,
  wanted: tuple[bool, bool],
  axis: str | None = None,
  *,
  interpret: bool = False,
  tile: tuple[int, int] | None = None,
):
  """As `token_chunk.rows_and_gradients`, for the divergences over the full vocabulary.

  Args:
    problem: the call.
    inputs: the arrays, float32 or bf16.
    wanted: whether the gradient of the student's hidden states and of its head are needed.
    axis: the mesh axis over which the vocabulary is split, inside a `shard_map`.
    interpret: False on a TPU; True or `pltpu.InterpretParams()` elsewhere.
    tile: (tokens, vocabulary rows) of a tile; None for `tile_for`.
  """
  widths = inputs.student_hidden.shape[1], inputs.teacher_hidden.shape[1]
  tile = tile or tile_for(*widths, max(inputs.student_head.dtype.itemsize, inputs.teacher_head.dtype.itemsize))
  one_chunk = partial(_one_chunk, tile=tile, interpret=interpret)
  return token_chunk.over_chunks(problem, inputs, wanted=wanted, axis=axis, sizes=_SIZES, one_chunk=one_chunk)


def _one_chunk(problem: Problem, inputs: Inputs, blocks: Blocks, d_head, want_hidden: bool, *, tile, interpret):
  call = _Call(problem, inputs, blocks, tile, interpret)
  want_gradient = want_hidden or d_head is not None
  keep = want_gradient or problem.needs_second_pass
  total, kept = _statistics(call, keep)
  if blocks.axis is not None:
    total = formulas.merge(problem, total, blocks.axis)
  blocks = cut(problem, inputs, _SECOND_PASS_BLOCK, blocks.axis)
  source = passes.from_tiles(problem, blocks, total, _named(kept), call.bv) if keep else None
  rows, gradient = passes.settle(problem, inputs, blocks, total, None, None, source)
  if not want_gradient:
    return rows, None, None
  per_token = _packed_rows(inputs, blocks, gradient)
  d_hidden = _d_hidden(call, kept, per_token) if want_hidden else None
  return rows, d_hidden, _d_head(call, kept, per_token, d_head) if d_head is not None else None


class _Call:
  """The shapes that the three kernels share."""

  def __init__(self, problem: Problem, inputs: Inputs, blocks: Blocks, tile: tuple[int, int], interpret):
    self.problem, self.inputs, self.interpret = problem, inputs, interpret
    self.tokens = inputs.student_hidden.shape[0]
    self.bt, self.bv = min(tile[0], -(-self.tokens // 8) * 8), min(tile[1], -(-blocks.rows // 128) * 128)
    self.vocab = blocks.rows
    self.grid = pl.cdiv(self.tokens, self.bt), pl.cdiv(blocks.rows, self.bv)
    # Under a mesh the last devices hold padding: how many of this one's rows are vocabulary is known at run time only.
    self.limit = jnp.minimum(blocks.rows, problem.vocab_size - blocks.first).reshape(1).astype(jnp.int32)
    self.lanes = pl.cdiv(self.grid[1], _LANES) * _LANES  # a lane for the running maximum of each tile

  def run(self, kernel, grid, in_specs, out_specs, out_shape, scratch=(), aliases=None, name=None):
    return pl.pallas_call(
      kernel,
      grid=grid,
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs],
      out_specs=out_specs,
      out_shape=out_shape,
      scratch_shapes=scratch,
      input_output_aliases=aliases or {},
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES),
      interpret=self.interpret,
      name=name,
    )


def _lane(block: jax.Array, index) -> jax.Array:
  """Column `index` of a block, as (tokens, 1)."""
  lane = lax.broadcasted_iota(jnp.int32, block.shape, 1)
  return jnp.sum(jnp.where(lane == index, block, 0), axis=1, keepdims=True)


def _named(kept) -> passes.Kept:
  """Names for what the statistics kernel keeps."""
  if len(kept) == 2:
    return passes.Kept(kept[0], None, kept[1], None)
  return passes.Kept(*kept)


def _statistics(call: _Call, keep: bool):
  """(`Statistics` [T], what was kept: logits, as many of [T, V] as maxima of [T, lanes]; the student's first)."""
  problem, inputs, bt, bv = call.problem, call.inputs, call.bt, call.bv
  kept_dtype = jnp.bfloat16 if is_short(inputs) else jnp.float32
  tile = pl.BlockSpec((bt, bv), lambda i, j: (i, j)), jax.ShapeDtypeStruct((call.tokens, call.vocab), kept_dtype)
  maxima = (
    pl.BlockSpec((bt, call.lanes), lambda i, j: (i, 0)),
    jax.ShapeDtypeStruct((call.tokens, call.lanes), jnp.float32),
  )
  sums = pl.BlockSpec((bt, _LANES), lambda i, j: (i, 0)), jax.ShapeDtypeStruct((call.tokens, _LANES), jnp.float32)
  outputs = [sums]
  if keep:
    outputs += [tile, tile, maxima, maxima] if problem.is_dense else [tile, maxima]

  def kernel(limit, hidden_s, head_s, hidden_t, head_t, sums, *kept):
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _():
      lane = lax.broadcasted_iota(jnp.int32, sums.shape, 1)
      sums[...] = jnp.where((lane == 0) | (lane == 3), MASKED, 0.0)

    z = dot(hidden_s[...], head_s[...], (1, 1), jnp.float32)
    y = dot(hidden_t[...], head_t[...], (1, 1), jnp.float32)
    counts = j * bv + lax.broadcasted_iota(jnp.int32, z.shape, 1) < limit[0]
    z = jnp.where(counts, squash(z, problem.student_temperature, problem.student_softcap), MASKED)
    y = jnp.where(counts, squash(y, problem.teacher_temperature, problem.teacher_softcap), MASKED)
    seen = formulas.Statistics(*(sums[:, k : k + 1] for k in range(7)))
    seen = formulas.update(problem, seen, z, y)
    for k, column in enumerate(seen):
      sums[:, k : k + 1] = column
    if keep:
      kept = _named(kept)
      z = z - seen.student_max
      kept.student[...] = z.astype(kept_dtype)
      here = lax.broadcasted_iota(jnp.int32, kept.student_max.shape, 1) == j
      kept.student_max[...] = jnp.where(here, seen.student_max, kept.student_max[...])
      if problem.is_dense:
        kept.difference[...] = (z - (y - seen.teacher_max)).astype(kept_dtype)
        kept.teacher_max[...] = jnp.where(here, seen.teacher_max, kept.teacher_max[...])

  def hidden(array):
    return pl.BlockSpec((bt, array.shape[1]), lambda i, j: (i, 0))

  def head(array):
    return pl.BlockSpec((bv, array.shape[1]), lambda i, j: (j, 0))

  arrays = inputs.student_hidden, inputs.student_head, inputs.teacher_hidden, inputs.teacher_head
  in_specs = [spec(array) for spec, array in zip((hidden, head, hidden, head), arrays)]
  specs, shapes = zip(*outputs)
  run = call.run(kernel, call.grid, in_specs, specs, shapes, name="divergence_statistics")
  sums, *kept = run(call.limit, *arrays)
  return formulas.Statistics(*(sums[:, k] for k in range(7))), kept


# Lanes of the array that carries what the gradient needs of each token.
_STUDENT_MAX, _STUDENT_LOG, _TEACHER_MAX, _TEACHER_LOG, _CENTRE, _WEIGHT, _ID, _VALUE = range(8)


def _packed_rows(inputs: Inputs, blocks: Blocks, gradient: passes.Gradient) -> jax.Array:
  """[T, 128] float32. Ids fit exactly: vocabularies are far below 2^24."""
  coefficients, none = gradient.coefficients, jnp.zeros_like(inputs.weights)
  columns = [*gradient.student, *gradient.teacher]
  if coefficients is None:
    columns += [gradient.centre, inputs.weights, none - 1, none]
  else:
    ids = coefficients.ids[:, 0] - blocks.first
    columns += [coefficients.centre, inputs.weights, ids, coefficients.values[:, 0]]
  packed = jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)
  return jnp.pad(packed, [(0, 0), (0, _LANES - packed.shape[1])])


def _tile_gradient(call: _Call, j, limit, rows, kept) -> jax.Array:
  """dz of a kept tile (bt, bv), weighted, in float32; columns past the vocabulary are 0."""
  problem = call.problem
  row, kept = {name: rows[:, name : name + 1] for name in range(8)}, _named(kept)
  student = formulas.Normaliser(row[_STUDENT_MAX], row[_STUDENT_LOG])
  student_offset = (_lane(kept.student_max[...], j) - student.max) - student.log
  log_p = kept.student[...].astype(jnp.float32) + student_offset
  column = j * call.bv + lax.broadcasted_iota(jnp.int32, log_p.shape, 1)
  if problem.is_dense:
    teacher_offset = (_lane(kept.teacher_max[...], j) - row[_TEACHER_MAX]) - row[_TEACHER_LOG]
    d = kept.difference[...].astype(jnp.float32) + (student_offset - teacher_offset)
    dz = formulas.dense_gradient(problem, row[_CENTRE], log_p, d)
  else:
    is_sampled = column == row[_ID].astype(jnp.int32)
    dz = jnp.where(is_sampled, row[_VALUE], row[_CENTRE] * jnp.exp(log_p))
  dz = dz * squash_slope(log_p + student.logsumexp, problem.student_temperature, problem.student_softcap)
  return jnp.where(column < limit[0], dz * row[_WEIGHT], 0)


def _kept_specs(call: _Call, kept, token_axis: int):
  """Specs of the per-token rows and of what was kept, for a grid whose axis `token_axis` is the tokens."""

  def tile(*ids):
    return ids[token_axis], ids[1 - token_axis]

  def by_token(*ids):
    return ids[token_axis], 0

  tiles, maxima = pl.BlockSpec((call.bt, call.bv), tile), pl.BlockSpec((call.bt, call.lanes), by_token)
  return [pl.BlockSpec((call.bt, _LANES), by_token)] + [tiles] * (len(kept) // 2) + [maxima] * (len(kept) // 2)


def _d_hidden(call: _Call, kept, per_token: jax.Array) -> jax.Array:
  """[T, Ds] float32."""
  head, width = call.inputs.student_head, call.inputs.student_head.shape[1]

  def kernel(limit, head, rows, *kept_and_out):
    *kept, out = kept_and_out
    j = pl.program_id(1)
    dz = _tile_gradient(call, j, limit, rows, kept).astype(call.inputs.student_hidden.dtype)
    held = j * call.bv + lax.broadcasted_iota(jnp.int32, head.shape, 0) < limit[0]
    share = dot(dz, jnp.where(held, head[...], 0), (1, 0), jnp.float32)

    @pl.when(j == 0)
    def _():
      out[...] = share

    @pl.when(j > 0)
    def _():
      out[...] += share

  in_specs = [pl.BlockSpec((call.bv, width), lambda i, j: (j, 0)), *_kept_specs(call, kept, token_axis=0)]
  out = pl.BlockSpec((call.bt, width), lambda i, j: (i, 0)), jax.ShapeDtypeStruct((call.tokens, width), jnp.float32)
  return call.run(kernel, call.grid, in_specs, *out, name="divergence_d_hidden")(call.limit, head, per_token, *kept)


def _d_head(call: _Call, kept, per_token: jax.Array, d_head: jax.Array) -> jax.Array:
  """[Vs, Ds] float32: `d_head` with this chunk's share added, in place."""
  hidden, width = call.inputs.student_hidden, call.inputs.student_hidden.shape[1]

  def kernel(limit, hidden, earlier, rows, *kept_and_out):
    *kept, out = kept_and_out
    j, i = pl.program_id(0), pl.program_id(1)
    dz = _tile_gradient(call, j, limit, rows, kept)
    # Rows past the tokens hold anything.
    dz = jnp.where(i * call.bt + lax.broadcasted_iota(jnp.int32, dz.shape, 0) < call.tokens, dz, 0).astype(hidden.dtype)
    held = i * call.bt + lax.broadcasted_iota(jnp.int32, hidden.shape, 0) < call.tokens
    share = dot(dz, jnp.where(held, hidden[...], 0), (0, 0), jnp.float32)

    @pl.when(i == 0)
    def _():
      out[...] = earlier[...] + share

    @pl.when(i > 0)
    def _():
      out[...] += share

  block = pl.BlockSpec((call.bv, width), lambda j, i: (j, 0))
  in_specs = [pl.BlockSpec((call.bt, width), lambda j, i: (i, 0)), block, *_kept_specs(call, kept, token_axis=1)]
  shape = jax.ShapeDtypeStruct(d_head.shape, jnp.float32)
  run = call.run(kernel, call.grid[::-1], in_specs, block, shape, aliases={2: 0}, name="divergence_d_head")
  return run(call.limit, hidden, d_head, per_token, *kept)
