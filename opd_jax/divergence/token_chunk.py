"""The divergence in chunks of tokens, with both gradients computed in the forward pass (plain XLA).

The cheapest exact gradient: a chunk's logits are computed once, kept until the row sums are known, and turned into
both gradients: 4 matrix products (student logits, teacher logits, dH, dW), no recomputation, and never more than
[chunk, vocab] values, whatever the number of tokens.

      tokens                first pass, block by block of vocabulary       gradient pass, block by block
      |------| chunk 0  ->  z, y -> row sums; keep z - m_s,            ->  dz -> dH += dz W_block
      |------| chunk 1      (z - m_s) - (y - m_t)  [chunk, vocab]              dW_block += dz^T h
      |--....| padded with tokens of weight 0
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence import passes
from opd_jax.divergence.blocks import accumulator_dtype, cut, is_short
from opd_jax.divergence.problem import Inputs, Problem


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How the work is cut."""

  chunk_bytes: int  # that a chunk may keep
  tokens: int  # whose multiple a chunk is at most
  block: int  # rows of a block of the head
  most_tokens: int = 1 << 30  # in a chunk, however small the vocabulary

  def chunk(self, tokens: int, vocab_size: int, itemsize: int) -> int:
    """Tokens in a chunk: equal chunks of at most what the bytes hold (of `tokens` at least)."""
    most = max(self.chunk_bytes // (2 * vocab_size * itemsize) // self.tokens, 1) * self.tokens
    return -(-tokens // -(-tokens // min(most, self.most_tokens)))


# A block of a CPU's chunk stays in its cache; an accelerator wants few, large products.
CPU = Sizes(chunk_bytes=32 << 20, tokens=128, block=1024)
ACCELERATOR = Sizes(chunk_bytes=640 << 20, tokens=512, block=8192)


def rows_and_gradients(problem: Problem, inputs: Inputs, wanted: tuple[bool, bool], axis: str | None = None):
  """The loss and the diagnostics of each token, and the gradients of the weighted sum.

  Args:
    problem: the call.
    inputs: the arrays.
    wanted: whether the gradient of the student's hidden states and of its head are needed; where neither is, no
      gradient product is computed.
    axis: the mesh axis over which the vocabulary is split, inside a `shard_map`.

  Returns:
    (`passes.Rows`, d_hidden [T, Ds] or None, d_head [Vs, Ds] or None), both gradients in float32.
  """
  cpu, accelerator = (partial(over_chunks, problem, wanted=wanted, axis=axis, sizes=s) for s in (CPU, ACCELERATOR))
  return lax.platform_dependent(inputs, cpu=cpu, default=accelerator)


def over_chunks(
  problem: Problem,
  inputs: Inputs,
  *,
  wanted: tuple[bool, bool],
  axis: str | None,
  sizes: Sizes,
  one_chunk: Callable | None = None,
):
  """`rows_and_gradients` with the work cut as told; `one_chunk` (by default of this module) does a chunk of tokens."""
  one_chunk = one_chunk or _one_chunk
  tokens, dtype = inputs.weights.shape[0], accumulator_dtype(inputs)
  blocks = cut(problem, inputs, sizes.block, axis)
  size = sizes.chunk(tokens, blocks.rows, 2 if is_short(inputs) else dtype.itemsize)
  count = -(-tokens // size)

  def chunked(array):
    padded = jnp.pad(array, [(0, count * size - tokens)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(count, size, *array.shape[1:])

  per_token = {
    name: chunked(array)
    for name in ("student_hidden", "teacher_hidden", "weights", "ids", "advantages")
    if (array := getattr(inputs, name)) is not None
  }

  def step(d_head, chunk):
    rows, d_hidden, d_head = one_chunk(problem, dataclasses.replace(inputs, **chunk), blocks, d_head, wanted[0])
    return d_head, (rows, d_hidden)

  d_head = jnp.zeros(inputs.student_head.shape, dtype) if wanted[1] else None
  d_head, outputs = lax.scan(step, d_head, per_token)
  rows, d_hidden = jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:tokens], outputs)
  return rows, blocks.sum(d_hidden), d_head


def _one_chunk(problem: Problem, inputs: Inputs, blocks, d_head, want_hidden: bool):
  """One chunk of tokens: (rows, d_hidden or None, d_head with the chunk's share added or None)."""
  want_gradient = want_hidden or d_head is not None
  total, entries, kept = passes.first_pass(
    problem,
    inputs,
    blocks,
    keep_student=want_gradient or problem.needs_second_pass,
    keep_difference=(want_gradient and problem.is_dense) or problem.needs_second_pass,
  )
  source = passes.from_kept(inputs, total)
  rows, gradient = passes.settle(problem, inputs, blocks, total, entries, kept, source)
  if not want_gradient:
    return rows, None, None
  return rows, *passes.gradients(problem, inputs, blocks, gradient, kept, source, d_head, want_hidden)
