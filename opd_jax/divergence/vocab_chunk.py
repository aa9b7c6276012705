"""The divergence in blocks of vocabulary, recomputed in the backward pass (plain XLA): the least memory.

All tokens at once, a block of the heads at a time, and nothing of [T, block] outlives its block:

      forward    z, y -> row sums -> loss                            (jsd and `tail`: once more, for their second sums)
      backward   z, y again -> dz -> dH += dz W_block, dW_block = dz^T h

6 matrix products against token_chunk's 4, for temporaries of [T, block] instead of [chunk, vocab].
"""

import jax
import jax.numpy as jnp

from opd_jax.divergence import passes
from opd_jax.divergence.blocks import Blocks, accumulator_dtype, cut
from opd_jax.divergence.problem import Inputs, Problem

BLOCK = 2048


def rows_and_coefficients(problem: Problem, inputs: Inputs, axis: str | None = None):
  """The loss and the diagnostics of each token, and what the backward pass needs: (`Rows`, `Gradient`)."""
  blocks = _blocks(problem, inputs, axis)
  total, entries, kept = passes.first_pass(problem, inputs, blocks, keep_student=False, keep_difference=False)
  source = passes.from_products(problem, inputs, blocks, total.student, total.teacher)
  return passes.settle(problem, inputs, blocks, total, entries, kept, source)


def gradients(
  problem: Problem, inputs: Inputs, gradient: passes.Gradient, wanted: tuple[bool, bool], axis: str | None = None
) -> tuple[jax.Array | None, jax.Array | None]:
  """(d_hidden [T, Ds] or None, d_head [Vs, Ds] or None) of the weighted sum, in float32."""
  blocks = _blocks(problem, inputs, axis)
  source = passes.from_products(problem, inputs, blocks, gradient.student, gradient.teacher)
  d_head = jnp.zeros(inputs.student_head.shape, accumulator_dtype(inputs)) if wanted[1] else None
  d_hidden, d_head = passes.gradients(problem, inputs, blocks, gradient, None, source, d_head, wanted[0])
  return blocks.sum(d_hidden), d_head


def _blocks(problem: Problem, inputs: Inputs, axis: str | None) -> Blocks:
  return cut(problem, inputs, BLOCK, axis)
