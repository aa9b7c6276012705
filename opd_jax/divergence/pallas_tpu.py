"""The divergence as Pallas kernels for TPU: 4 matrix products, with the logits of a chunk written once.

    statistics   grid (tokens, vocab): z, y in VMEM -> row sums; with a gradient to come also keeps, in HBM,
                 z - m_s and (z - m_s) - (y - m_t), relative to the running maxima of their tile
    gradients    grid (cores, vocab, tokens): kept tile -> dz -> dH += dz W, which stays in VMEM for the whole chunk,
                 and dW += dz^T h, added to the sum over earlier chunks in place

                      tokens ->                 the chunk's dH [tokens, Ds], float32, in VMEM
      vocab  |---|---|  tile by tile,           core 0 and core 1 (v5p) walk a half of the vocabulary each and hold a
        |    |---|---|  tokens fastest:         dH each; the two are added afterwards
        v    |---|---|  a dW block is finished before the next one begins

Without a gradient only the first kernel runs and nothing of [T, V] reaches HBM. A row's running sums live in the lanes
of one (tokens, 128) block, because one-dimensional blocks do not tile. The vocabulary is never padded: the last tile
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
from opd_jax.divergence.tiles import TpuTile, tpu_generation, tpu_tile

_LANES = 128
# Of the elementwise pass that jsd makes over what was kept.
_SECOND_PASS_BLOCK = 8192
# What a chunk keeps is the largest temporary: 1024 tokens of 152k entries in bf16. Its dH lies in VMEM.
_SIZES = token_chunk.Sizes(chunk_bytes=640 << 20, tokens=512, block=1 << 30, most_tokens=1024)


def rows_and_gradients(
  problem: Problem,
  inputs: Inputs,
  wanted: tuple[bool, bool],
  axis: str | None = None,
  *,
  interpret: bool = False,
  tile: TpuTile | None = None,
):
  """As `token_chunk.rows_and_gradients`, for the divergences over the full vocabulary.

  Args:
    problem: the call.
    inputs: the arrays, float32 or bf16.
    wanted: whether the gradient of the student's hidden states and of its head are needed.
    axis: the mesh axis over which the vocabulary is split, inside a `shard_map`.
    interpret: False on a TPU; True or `pltpu.InterpretParams()` elsewhere.
    tile: of the kernels; None for the one that the table has.
  """
  if tile is None:
    student, teacher = inputs.student_head, inputs.teacher_head
    itemsize = max(student.dtype.itemsize, teacher.dtype.itemsize)
    tile = tpu_tile(tpu_generation(), student.shape[1], teacher.shape[1], itemsize)
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
  return rows, *_gradients(call, kept, per_token, d_head, want_hidden)


class _Call:
  """The shapes that the two kernels share."""

  def __init__(self, problem: Problem, inputs: Inputs, blocks: Blocks, tile: TpuTile, interpret):
    self.problem, self.inputs, self.tile, self.interpret = problem, inputs, tile, interpret
    self.tokens = inputs.student_hidden.shape[0]
    self.bt, self.bv = min(tile.tokens, -(-self.tokens // 8) * 8), min(tile.rows, -(-blocks.rows // _LANES) * _LANES)
    self.vocab = blocks.rows
    self.grid = pl.cdiv(self.tokens, self.bt), pl.cdiv(blocks.rows, self.bv)
    # Under a mesh the last devices hold padding: how many of this one's rows are vocabulary is known at run time only.
    self.limit = jnp.minimum(blocks.rows, problem.vocab_size - blocks.first).reshape(1).astype(jnp.int32)

  def run(self, kernel, grid, in_specs, out_specs, out_shape, *, semantics, aliases=None, name):
    return pl.pallas_call(
      kernel,
      grid=grid,
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *in_specs],
      out_specs=out_specs,
      out_shape=out_shape,
      input_output_aliases=aliases or {},
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=semantics,
        vmem_limit_bytes=self.tile.vmem_bytes,
      ),
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
  """(`Statistics` [T], what was kept: logits, as many of [T, V] as maxima of [T, tiles]; the student's first)."""
  problem, inputs, bt, bv = call.problem, call.inputs, call.bt, call.bv
  kept_dtype = jnp.bfloat16 if is_short(inputs) else jnp.float32
  tile = pl.BlockSpec((bt, bv), lambda i, j: (i, j)), jax.ShapeDtypeStruct((call.tokens, call.vocab), kept_dtype)
  # A lane for the running maximum of each tile, 128 tiles a block.
  lanes = pl.cdiv(call.grid[1], _LANES) * _LANES
  maxima = (
    pl.BlockSpec((bt, _LANES), lambda i, j: (i, j // _LANES)),
    jax.ShapeDtypeStruct((call.tokens, lanes), jnp.float32),
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
      here = lax.broadcasted_iota(jnp.int32, kept.student_max.shape, 1) == j % _LANES
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
  semantics = ("parallel", "arbitrary")
  run = call.run(kernel, call.grid, in_specs, specs, shapes, semantics=semantics, name="divergence_statistics")
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
  student_offset = (_lane(kept.student_max[...], j % _LANES) - student.max) - student.log
  log_p = kept.student[...].astype(jnp.float32) + student_offset
  column = j * call.bv + lax.broadcasted_iota(jnp.int32, log_p.shape, 1)
  if problem.is_dense:
    teacher_offset = (_lane(kept.teacher_max[...], j % _LANES) - row[_TEACHER_MAX]) - row[_TEACHER_LOG]
    d = kept.difference[...].astype(jnp.float32) + (student_offset - teacher_offset)
    dz = formulas.dense_gradient(problem, row[_CENTRE], log_p, d)
  else:
    is_sampled = column == row[_ID].astype(jnp.int32)
    dz = jnp.where(is_sampled, row[_VALUE], row[_CENTRE] * jnp.exp(log_p))
  dz = dz * squash_slope(log_p + student.logsumexp, problem.student_temperature, problem.student_softcap)
  return jnp.where(column < limit[0], dz * row[_WEIGHT], 0)


def _gradients(call: _Call, kept, per_token: jax.Array, d_head: jax.Array | None, want_hidden: bool):
  """(d_hidden [T, Ds] float32 or None, `d_head` with this chunk's share added, in place, or None)."""
  hidden, head, width = call.inputs.student_hidden, call.inputs.student_head, call.inputs.student_head.shape[1]
  (token_tiles, vocab_tiles), bt, bv = call.grid, call.bt, call.bv
  tiles_of_core, padded = pl.cdiv(vocab_tiles, call.tile.cores), token_tiles * bt
  cores = pl.cdiv(vocab_tiles, tiles_of_core)  # none without a tile: its dH would stay unwritten

  def kernel(limit, rows, hidden, head, *refs):
    kept, outputs = refs[: len(refs) - len(outs)], list(refs[len(refs) - len(outs) :])
    if d_head is not None:
      earlier, *kept = kept
      d_head_out = outputs.pop()
    step, i = pl.program_id(1), pl.program_id(2)
    j = pl.program_id(0) * tiles_of_core + step

    @pl.when(j < vocab_tiles)
    def _():
      dz = _tile_gradient(call, j, limit, rows, kept)
      if want_hidden:
        held = j * bv + lax.broadcasted_iota(jnp.int32, head.shape, 0) < limit[0]
        share = dot(dz.astype(hidden.dtype), jnp.where(held, head[...], 0), (1, 0), jnp.float32)
        here = pl.ds(pl.multiple_of(i * bt, bt), bt)
        outputs[0][here, :] = jnp.where(step == 0, 0, outputs[0][here, :]) + share
      if d_head is not None:
        # Rows past the tokens hold anything.
        dz = jnp.where(i * bt + lax.broadcasted_iota(jnp.int32, dz.shape, 0) < call.tokens, dz, 0)
        held = i * bt + lax.broadcasted_iota(jnp.int32, hidden.shape, 0) < call.tokens
        share = dot(dz.astype(hidden.dtype), jnp.where(held, hidden[...], 0), (0, 0), jnp.float32)
        d_head_out[...] = jnp.where(i == 0, earlier[...], d_head_out[...]) + share

  def tile(core, step):
    # The last core may have a tile less: it stays on the last one, and does nothing.
    return jnp.minimum(core * tiles_of_core + step, vocab_tiles - 1)

  token_block = pl.BlockSpec((bt, width), lambda core, step, i: (i, 0))
  vocab_block = pl.BlockSpec((bv, width), lambda core, step, i: (tile(core, step), 0))
  kept_block = pl.BlockSpec((bt, bv), lambda core, step, i: (i, tile(core, step)))
  maxima_block = pl.BlockSpec((bt, _LANES), lambda core, step, i: (i, tile(core, step) // _LANES))
  in_specs = [pl.BlockSpec((bt, _LANES), lambda core, step, i: (i, 0)), token_block, vocab_block]
  arrays, outs, aliases = [per_token, hidden, head], [], {}
  if want_hidden:
    spec = pl.BlockSpec((padded, width), lambda core, step, i: (core, 0), pipeline_mode=pl.Buffered(1))
    outs.append((spec, jax.ShapeDtypeStruct((cores * padded, width), jnp.float32)))
  if d_head is not None:
    aliases = {1 + len(arrays): len(outs)}
    in_specs.append(vocab_block)
    arrays.append(d_head)
    outs.append((vocab_block, jax.ShapeDtypeStruct(d_head.shape, jnp.float32)))
  half = len(kept) // 2
  in_specs += [kept_block] * half + [maxima_block] * half
  specs, shapes = zip(*outs)
  semantics = ("parallel", "arbitrary", "arbitrary")
  grid = cores, tiles_of_core, token_tiles
  run = call.run(
    kernel, grid, in_specs, specs, shapes, semantics=semantics, aliases=aliases, name="divergence_gradients"
  )
  results = run(call.limit, *arrays, *kept)
  d_hidden = results[0].reshape(cores, padded, width).sum(axis=0)[: call.tokens] if want_hidden else None
  return d_hidden, results[-1] if d_head is not None else None
