"""The divergence with a Pallas kernel for GPUs (Triton): 4 matrix products, with the logits of a chunk written once.

    statistics   one program a (token tile, share of the vocabulary): z, y in registers -> row sums; with a gradient to
                 come also keeps z - m_s and (z - m_s) - (y - m_t), relative to the running maxima of their tile
    gradients    `passes.gradients` on what was kept, no logits again: for each block of vocabulary one elementwise
                 kernel reads the tiles and writes dz in the inputs' type, and two products make dH and dW of it

The gradient side is XLA's on purpose. Its elementwise fusion of dz is what a Triton kernel of it would be; the products
are plain [T, D] x [D, V] GEMMs, for which cuBLAS and XLA's own autotuned Triton use Hopper's wgmma and TMA, which
Pallas's Triton lowering does not pipeline; and a fused kernel would compute dz twice, because no program can own both
a block of dH (a sum over the vocabulary) and one of dW (a sum over tokens). dz of a block, 16 MB, stays in L2 between.

Without a gradient only the kernel runs and nothing of [T, V] reaches memory. Triton reads no shared state between
programs, so each writes the sums of its share and they are merged afterwards, as the devices of a mesh do.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from opd_jax.divergence import formulas, passes, token_chunk
from opd_jax.divergence.blocks import Blocks, cut, dot, is_short, squash
from opd_jax.divergence.problem import MASKED, Inputs, Problem
from opd_jax.divergence.tiles import H200, GpuTile

_SIZES = token_chunk.Sizes(chunk_bytes=640 << 20, tokens=512, block=1 << 30)
_GRADIENT_BLOCK = 8192
# Programs to aim at: a few for each multiprocessor of a large GPU.
_PROGRAMS = 528


def rows_and_gradients(
  problem: Problem,
  inputs: Inputs,
  wanted: tuple[bool, bool],
  axis: str | None = None,
  *,
  interpret: bool = False,
  tile: GpuTile = H200,
):
  """As `token_chunk.rows_and_gradients`, for the divergences over the full vocabulary.

  Args:
    problem: the call; widths must be multiples of 16, the vocabulary at least 16.
    inputs: the arrays, float32 or bf16.
    wanted: whether the gradient of the student's hidden states and of its head are needed.
    axis: the mesh axis over which the vocabulary is split, inside a `shard_map`.
    interpret: True runs the kernel's interpreter, on any machine.
    tile: of a product.
  """
  one_chunk = partial(_one_chunk, tile=tile, interpret=interpret)
  return token_chunk.over_chunks(problem, inputs, wanted=wanted, axis=axis, sizes=_SIZES, one_chunk=one_chunk)


def _one_chunk(problem: Problem, inputs: Inputs, blocks: Blocks, d_head, want_hidden: bool, *, tile, interpret):
  want_gradient = want_hidden or d_head is not None
  keep = want_gradient or problem.needs_second_pass
  total, kept, rows_of_tile = _statistics(problem, inputs, blocks, tile, keep, interpret)
  if blocks.axis is not None:
    total = formulas.merge(problem, total, blocks.axis)
  blocks = cut(problem, inputs, _GRADIENT_BLOCK, blocks.axis)
  source = passes.from_tiles(problem, blocks, total, kept, rows_of_tile) if keep else None
  rows, gradient = passes.settle(problem, inputs, blocks, total, None, None, source)
  if not want_gradient:
    return rows, None, None
  return rows, *passes.gradients(problem, inputs, blocks, gradient, None, source, d_head, want_hidden)


def _power_of_two(most: int, value: int) -> int:
  """The largest power of two that is at most `most` and at most `value`."""
  return min(most, 1 << (value.bit_length() - 1))


def _statistics(problem: Problem, inputs: Inputs, blocks: Blocks, tile, keep: bool, interpret: bool):
  """(`Statistics` [T], what was kept, maxima [T, tiles], or None, rows of a tile)."""
  tokens, vocab = inputs.student_hidden.shape[0], blocks.rows
  bt, bv = tile.tokens, _power_of_two(tile.rows, vocab)
  token_tiles, vocab_tiles = pl.cdiv(tokens, bt), pl.cdiv(vocab, bv)
  shares = max(1, min(vocab_tiles, _PROGRAMS // token_tiles))
  tiles_of_share = pl.cdiv(vocab_tiles, shares)
  shares = pl.cdiv(vocab_tiles, tiles_of_share)
  padded = token_tiles * bt
  kept_dtype = jnp.bfloat16 if is_short(inputs) else jnp.float32
  limit = jnp.minimum(vocab, problem.vocab_size - blocks.first).reshape(1).astype(jnp.int32)

  def logits(hidden, head, first_token, first_row):
    """[bt, bv] products over the width, a slice of it at a time."""
    width = hidden.shape[1]
    bk = next(size for size in (tile.width, 32, 16) if width % size == 0)

    def add_slice(k, sums):
      slice_k = pl.ds(k * bk, bk)
      left = plgpu.load(hidden.at[pl.ds(first_token, bt), slice_k])
      return sums + dot(left, plgpu.load(head.at[pl.ds(first_row, bv), slice_k]), (1, 1), jnp.float32)

    return lax.fori_loop(0, width // bk, add_slice, jnp.zeros((bt, bv), jnp.float32))

  def kernel(limit, hidden_s, head_s, hidden_t, head_t, sums, *kept):
    i, share = pl.program_id(0), pl.program_id(1)
    first_token = i * bt
    most = plgpu.load(limit.at[pl.ds(0, 1)])

    def add_tile(j, seen):
      # The last tile starts early, inside the head; the rows that its neighbour holds are masked.
      first_row = jnp.minimum(j * bv, vocab - bv)
      row = first_row + jnp.arange(bv)
      new = (row >= j * bv)[None, :]
      counts = new & (row < most)[None, :]
      z = logits(hidden_s, head_s, first_token, first_row)
      y = logits(hidden_t, head_t, first_token, first_row)
      z = jnp.where(counts, squash(z, problem.student_temperature, problem.student_softcap), MASKED)
      y = jnp.where(counts, squash(y, problem.teacher_temperature, problem.teacher_softcap), MASKED)
      seen = formulas.update(problem, seen, z, y)
      if keep:
        student, *difference, student_max, teacher_max = kept
        here, new = (pl.ds(first_token, bt), pl.ds(first_row, bv)), jnp.broadcast_to(new, z.shape)
        z = z - seen.student_max[:, None]
        plgpu.store(student.at[here], z.astype(kept_dtype), mask=new)
        if difference:
          plgpu.store(difference[0].at[here], (z - (y - seen.teacher_max[:, None])).astype(kept_dtype), mask=new)
        plgpu.store(student_max.at[j, pl.ds(first_token, bt)], seen.student_max)
        plgpu.store(teacher_max.at[j, pl.ds(first_token, bt)], seen.teacher_max)
      return seen

    first = share * tiles_of_share
    last = jnp.minimum(first + tiles_of_share, vocab_tiles)
    seen = lax.fori_loop(first, last, add_tile, formulas.start((bt,), jnp.float32))
    for k, column in enumerate(seen):
      plgpu.store(sums.at[share, jnp.int32(k), pl.ds(first_token, bt)], column)

  shapes = [jax.ShapeDtypeStruct((shares, 7, padded), jnp.float32)]
  if keep:
    shapes += [jax.ShapeDtypeStruct((padded, vocab), kept_dtype)] * (2 if problem.is_dense else 1)
    shapes += [jax.ShapeDtypeStruct((vocab_tiles, padded), jnp.float32)] * 2
  run = pl.pallas_call(
    kernel,
    grid=(token_tiles, shares),
    out_shape=shapes,
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=3),
    interpret=interpret,
    name="divergence_statistics",
  )
  hidden = (jnp.pad(array, [(0, padded - tokens), (0, 0)]) for array in (inputs.student_hidden, inputs.teacher_hidden))
  hidden_s, hidden_t = hidden
  sums, *kept = run(limit, hidden_s, inputs.student_head, hidden_t, inputs.teacher_head)
  parts = formulas.Statistics(*(sums[:, k, :tokens] for k in range(7)))
  if not keep:
    return formulas.total(problem, parts), None, bv
  *values, student_max, teacher_max = (array[:tokens] for array in (*kept[:-2], kept[-2].T, kept[-1].T))
  kept = passes.Kept(values[0], values[1] if problem.is_dense else None, student_max, teacher_max)
  return formulas.total(problem, parts), kept, bv
