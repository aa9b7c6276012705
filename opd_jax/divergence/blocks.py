"""How the vocabulary is cut, and the matrix products of a block.

                 vocab_size (rows past it belong to padding and are never read)
    head   |-------|-------|-------|----|
    block 0 ^^^^^^^         block 3 starts early, so that every block has the same size and the head is never copied to
    block 1         ^^^^^^^         pad it (151,936 = 128 * 1187: no useful block divides it);
    block 3                     ^^^^^^^   the rows already seen are masked.

Under a mesh the heads are split over one axis and each device cuts its own rows.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence.problem import MASKED, Inputs, Problem


@dataclasses.dataclass(frozen=True)
class Blocks:
  """`count` blocks of `size` rows that cover this device's `rows`; the last one overlaps its neighbour."""

  rows: int
  count: int
  size: int
  vocab_size: int
  first: jax.Array | int  # vocabulary id of this device's row 0
  axis: str | None  # mesh axis over which the vocabulary is split

  def start(self, index: jax.Array) -> jax.Array:
    """First row of a block."""
    return jnp.minimum(index * self.size, self.rows - self.size)

  def ids(self, index: jax.Array) -> jax.Array:
    """[size] vocabulary ids of a block."""
    return self.first + self.start(index) + jnp.arange(self.size)

  def mask(self, index: jax.Array, logits: jax.Array) -> jax.Array:
    """Logits [T, size] with the rows that an earlier block holds, or that are padding, at MASKED."""
    if self.count * self.size > self.rows:
      logits = jnp.where(self.start(index) + jnp.arange(self.size) >= index * self.size, logits, MASKED)
    if self.axis is not None:
      logits = jnp.where(self.ids(index) < self.vocab_size, logits, MASKED)
    return logits

  def positions(self, index: jax.Array, ids: jax.Array) -> jax.Array:
    """Columns of vocabulary ids in a block; `size`, one past the end, for ids that it lacks or that are masked."""
    row = ids - self.first
    held = (row >= index * self.size) & (row < self.start(index) + self.size)
    return jnp.where(held, row - self.start(index), self.size)

  def rows_of(self, head: jax.Array, index: jax.Array) -> jax.Array:
    """The rows [size, D] of a block."""
    return lax.dynamic_slice_in_dim(head, self.start(index), self.size)

  def sum(self, values):
    """Sum over the devices that share the vocabulary."""
    return values if self.axis is None else lax.psum(values, self.axis)


def cut(problem: Problem, inputs: Inputs, largest: int, axis: str | None) -> Blocks:
  """The fewest equal blocks of at most about `largest` rows, in multiples of 128 (a TPU's lanes)."""
  rows = problem.vocab_size if axis is None else inputs.student_head.shape[0]
  count = -(-rows // largest)
  size = rows if count == 1 else min(math.ceil(rows / count / 128) * 128, rows)
  return Blocks(rows, count, size, problem.vocab_size, 0 if axis is None else lax.axis_index(axis) * rows, axis)


def accumulator_dtype(inputs: Inputs):
  """Float32, or float64 where the student is float64."""
  return jnp.promote_types(jnp.float32, jnp.promote_types(inputs.student_hidden.dtype, inputs.student_head.dtype))


def is_short(inputs: Inputs) -> bool:
  """Whether the student's arrays are of 16 bits."""
  return jnp.promote_types(inputs.student_hidden.dtype, inputs.student_head.dtype).itemsize == 2


def dot(left: jax.Array, right: jax.Array, contract: tuple[int, int], dtype) -> jax.Array:
  """Product of two matrices over dimension `contract[0]` of the left and `contract[1]` of the right, summed in `dtype`.

  Float32 operands are multiplied as float32: the default of TPUs (bf16 passes) and GPUs (TF32) would not do.
  """
  operand = jnp.promote_types(left.dtype, right.dtype)
  precision = lax.Precision.DEFAULT if operand.itemsize == 2 else lax.Precision.HIGHEST
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  left, right = left.astype(operand), right.astype(operand)
  return lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=dtype)


def squash(raw: jax.Array, temperature: float, softcap: float | None) -> jax.Array:
  """Logits from a head's raw products: softcap * tanh(raw / softcap) (Gemma 2), then divided by the temperature."""
  return (raw if softcap is None else softcap * jnp.tanh(raw / softcap)) / temperature


def squash_slope(logits: jax.Array, temperature: float, softcap: float | None) -> jax.Array | float:
  """d squash / d raw, from the squashed logits: 1 - tanh^2, over the temperature. 0 where MASKED."""
  if softcap is None:
    return 1 / temperature
  return (1 - jnp.square(jnp.clip(logits * (temperature / softcap), -1, 1))) / temperature


def block_logits(problem: Problem, inputs: Inputs, blocks: Blocks, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both models' logits [T, size] of a block, at their temperatures; masked rows hold MASKED."""
  dtype = accumulator_dtype(inputs)
  z = dot(inputs.student_hidden, blocks.rows_of(inputs.student_head, index), (1, 1), dtype)
  y = dot(inputs.teacher_hidden, blocks.rows_of(inputs.teacher_head, index), (1, 1), dtype)
  z = squash(z, problem.student_temperature, problem.student_softcap)
  y = squash(y, problem.teacher_temperature, problem.teacher_softcap)
  return blocks.mask(index, z), blocks.mask(index, y)


def sampled_logits(problem: Problem, inputs: Inputs, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
  """Both models' logits [T] of the sampled ids: one row of each head a token, no pass over the vocabulary."""
  dtype, row = accumulator_dtype(inputs), inputs.ids - blocks.first
  held = (row >= 0) & (row < blocks.rows)
  row = jnp.where(held, row, 0)
  z = jnp.sum(inputs.student_hidden.astype(dtype) * inputs.student_head[row].astype(dtype), axis=1)
  y = jnp.sum(inputs.teacher_hidden.astype(dtype) * inputs.teacher_head[row].astype(dtype), axis=1)
  z, y = blocks.sum((jnp.where(held, z, 0), jnp.where(held, y, 0)))
  return (
    squash(z, problem.student_temperature, problem.student_softcap),
    squash(y, problem.teacher_temperature, problem.teacher_softcap),
  )
