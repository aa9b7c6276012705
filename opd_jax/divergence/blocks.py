"""How the vocabulary is cut, and the two matrix products of a block.

             vocab_size (rows past it belong to padding and are never read)
head   |-------|-------|-------|----|
block 0 ^^^^^^^         block 3 starts `overlap` rows early, so that every block has the same size and the head is
block 1         ^^^^^^^         never copied to pad it (151,936 = 128 * 1187: no useful block divides it);
block 3                     ^^^^^^^   the rows already seen are masked.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence.problem import MASKED, Inputs, Problem


@dataclasses.dataclass(frozen=True)
class Blocks:
  """`count` blocks of `size` rows that cover `vocab_size` rows; the last one overlaps its neighbour."""

  vocab_size: int
  count: int
  size: int

  def start(self, index: jax.Array) -> jax.Array:
    """First row of a block."""
    return jnp.minimum(index * self.size, self.vocab_size - self.size)

  def unseen(self, index: jax.Array) -> jax.Array:
    """[size] bool: the rows that no earlier block holds."""
    return self.start(index) + jnp.arange(self.size) >= index * self.size


def cut(vocab_size: int, largest: int) -> Blocks:
  """The fewest equal blocks of at most about `largest` rows, in multiples of 128 (a TPU's lanes)."""
  count = -(-vocab_size // largest)
  size = -(-vocab_size // count)
  return Blocks(vocab_size, count, size if count == 1 else -(-size // 128) * 128)


def accumulator_dtype(inputs: Inputs):
  """Float32, or float64 where the student is float64."""
  return jnp.promote_types(jnp.float32, jnp.promote_types(inputs.student_hidden.dtype, inputs.student_head.dtype))


def dot(left: jax.Array, right: jax.Array, contract: tuple[int, int], dtype) -> jax.Array:
  """Product of two matrices over dimension `contract[0]` of the left and `contract[1]` of the right, summed in `dtype`.

  Float32 operands are multiplied as float32: the default of TPUs (bf16 passes) and GPUs (TF32) would not do.
  """
  operand = jnp.promote_types(left.dtype, right.dtype)
  precision = lax.Precision.DEFAULT if operand.itemsize == 2 else lax.Precision.HIGHEST
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(
    left.astype(operand), right.astype(operand), dimensions, precision=precision, preferred_element_type=dtype
  )


def head_rows(head: jax.Array, blocks: Blocks, index: jax.Array) -> jax.Array:
  """The rows [size, D] of a block."""
  return lax.dynamic_slice_in_dim(head, blocks.start(index), blocks.size)


def block_logits(problem: Problem, inputs: Inputs, blocks: Blocks, index: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both models' logits [T, size] of a block, divided by their temperatures; rows seen before are MASKED."""
  dtype, unseen = accumulator_dtype(inputs), blocks.unseen(index)
  z = dot(inputs.student_hidden, head_rows(inputs.student_head, blocks, index), (1, 1), dtype)
  y = dot(inputs.teacher_hidden, head_rows(inputs.teacher_head, blocks, index), (1, 1), dtype)
  z = jnp.where(unseen, z / problem.student_temperature, MASKED)
  return z, jnp.where(unseen, y / problem.teacher_temperature, MASKED)


def logit_of(hidden: jax.Array, head: jax.Array, ids: jax.Array, temperature: float, dtype) -> jax.Array:
  """[T] logits of one given vocabulary id per token: D products each, no pass over the vocabulary."""
  rows = head[ids].astype(dtype)
  return jnp.sum(hidden.astype(dtype) * rows, axis=1) / temperature
