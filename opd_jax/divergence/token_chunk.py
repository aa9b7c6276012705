"""The divergence in chunks of tokens, with both gradients computed in the forward pass (plain XLA).

The cheapest exact gradient: a chunk's logits are computed once, kept until the row sums are known, and turned into
both gradients: 4 matrix products (student logits, teacher logits, dH, dW), no recomputation, and never more than
[chunk, vocab] values, whatever the number of tokens.

      tokens                sweep 1, block by block of vocabulary          sweep 2, block by block
      |------| chunk 0  ->  z, y -> row sums; keep z - m_s,            ->  dz -> dH += dz W_block
      |------| chunk 1      (z - m_s) - (y - m_t)  [chunk, vocab]              dW_block += dz^T h
      |--....| padded with tokens of weight 0

What is kept is relative to the maxima that were known when the block was computed: where the inputs are bf16 it is
kept in bf16, and the entries that matter (z near the maximum, y near z) are the small ones, which bf16 holds well.
Rounding the logits themselves would drown the gradient of a close pair (kernel.md, section 5: error 0.96 at KL 1e-3).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence import blocks as vocabulary
from opd_jax.divergence import formulas
from opd_jax.divergence.problem import Inputs, Problem


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How the work is cut: tokens in a chunk, rows of the head in a block."""

  tokens: int
  block: int


def sizes_for(tokens: int, vocab_size: int, itemsize: int) -> Sizes:
  """Equal chunks of the tokens whose kept values fit 64 MiB, or of 128 tokens (fewer starve the matrix units)."""
  most = max((64 << 20) // (2 * vocab_size * itemsize), 128)
  count = -(-tokens // most)
  return Sizes(tokens=-(-tokens // count), block=8192)


def rows_and_gradients(problem: Problem, inputs: Inputs, wanted: tuple[bool, bool], sizes: Sizes | None = None):
  """The loss and the diagnostics of each token, and the gradients of the weighted sum.

  Args:
    problem: the call.
    inputs: the arrays.
    wanted: whether the gradient of the student's hidden states and of its head are needed; where neither is, no
      gradient product is computed.
    sizes: how the work is cut; None for `sizes_for` of the shapes.

  Returns:
    (rows, d_hidden [T, Ds] or None, d_head [Vs, Ds] or None), both gradients in float32.
  """
  tokens = inputs.weights.shape[0]
  sizes = sizes or sizes_for(tokens, problem.vocab_size, 2 if _is_short(inputs) else 4)
  size = sizes.tokens
  count = -(-tokens // size)

  def chunked(array):
    padded = jnp.pad(array, [(0, count * size - tokens)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(count, size, *array.shape[1:])

  per_token = {
    name: chunked(array)
    for name in ("student_hidden", "teacher_hidden", "weights", "ids", "advantages")
    if (array := getattr(inputs, name)) is not None
  }
  dtype = vocabulary.accumulator_dtype(inputs)
  d_head = jnp.zeros(inputs.student_head.shape, dtype) if wanted[1] else None

  def one_chunk(d_head, chunk):
    answer, d_hidden, d_head = _chunk(problem, dataclasses.replace(inputs, **chunk), d_head, wanted[0], sizes.block)
    return d_head, (answer, d_hidden)

  d_head, (answer, d_hidden) = lax.scan(one_chunk, d_head, per_token)
  joined = jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:tokens], (answer, d_hidden))
  return *joined, d_head


def _is_short(inputs: Inputs) -> bool:
  return jnp.promote_types(inputs.student_hidden.dtype, inputs.student_head.dtype).itemsize == 2


def _chunk(problem: Problem, inputs: Inputs, d_head: jax.Array | None, want_hidden: bool, block: int):
  """One chunk of tokens: (rows, d_hidden or None, d_head with the chunk's share added or None)."""
  want_gradient = want_hidden or d_head is not None
  blocks = vocabulary.cut(problem.vocab_size, block)
  dtype = vocabulary.accumulator_dtype(inputs)
  kept_dtype = jnp.bfloat16 if _is_short(inputs) else dtype
  keep_difference = problem.needs_mixture or (want_gradient and problem.needs_teacher_logits)
  keep_student = problem.needs_mixture or want_gradient

  def sweep(seen, index):
    z, y = vocabulary.block_logits(problem, inputs, blocks, index)
    seen = formulas.update(problem, seen, z, y)
    z, y = z - seen.student_max[:, None], y - seen.teacher_max[:, None]
    kept = (
      z.astype(kept_dtype) if keep_student else None,
      (z - y).astype(kept_dtype) if keep_difference else None,
      seen.student_max,
      seen.teacher_max,
    )
    return seen, kept

  indices = jnp.arange(blocks.count)
  total, kept = lax.scan(sweep, formulas.start(inputs.weights.shape[0], dtype), indices)
  student_log_normaliser = total.student_max + jnp.log(total.student_sum)
  teacher_log_normaliser = total.teacher_max + jnp.log(total.teacher_sum)

  def log_probabilities(block_kept):
    """(log p, log p - log q) of a block from what was kept of it."""
    z, difference, student_max, teacher_max = block_kept
    student_offset = student_max - student_log_normaliser
    log_p = z.astype(dtype) + student_offset[:, None]
    if difference is None:
      return log_p, None
    offset = student_offset - (teacher_max - teacher_log_normaliser)
    return log_p, difference.astype(dtype) + offset[:, None]

  mixture = chosen = None
  if problem.needs_mixture:
    zero = jnp.zeros_like(total.student_max)

    def add_mixture(sums, block_kept):
      terms = formulas.mixture_terms(problem, *log_probabilities(block_kept))
      return jax.tree.map(jnp.add, sums, terms), None

    mixture, _ = lax.scan(add_mixture, (zero, zero), kept)
  if problem.kind == "sampled":
    chosen = chosen_logprobs(problem, inputs, student_log_normaliser, teacher_log_normaliser)
  answer = formulas.finish(problem, total, chosen, inputs.advantages, mixture)
  if not want_gradient:
    return answer, None, None

  def add_gradients(gradients, index_and_kept):
    d_hidden, d_head = gradients
    index, block_kept = index_and_kept
    log_p, d = log_probabilities(block_kept)
    columns = blocks.start(index) + jnp.arange(blocks.size)
    is_sampled = None if problem.kind != "sampled" else (columns == inputs.ids[:, None]) & blocks.unseen(index)
    dz = formulas.logit_gradient(problem, answer.centre, log_p, d, is_sampled)
    dz = dz * (inputs.weights / problem.student_temperature)[:, None]
    # Back to the operands' own type: a float32 dz would make XLA widen both operands of the two products below.
    dz = dz.astype(inputs.student_hidden.dtype)
    if want_hidden:
      head_block = vocabulary.head_rows(inputs.student_head, blocks, index)
      d_hidden = d_hidden + vocabulary.dot(dz, head_block, (1, 0), dtype)
    if d_head is not None:
      share = vocabulary.dot(dz, inputs.student_hidden, (0, 0), dtype)
      grown = vocabulary.head_rows(d_head, blocks, index) + share
      d_head = lax.dynamic_update_slice_in_dim(d_head, grown, blocks.start(index), axis=0)
    return (d_hidden, d_head), None

  d_hidden = jnp.zeros(inputs.student_hidden.shape, dtype) if want_hidden else None
  (d_hidden, d_head), _ = lax.scan(add_gradients, (d_hidden, d_head), (indices, kept))
  return answer, d_hidden, d_head


def chosen_logprobs(problem: Problem, inputs: Inputs, student_log_normaliser, teacher_log_normaliser):
  """(log p, log q) [T] of the sampled tokens."""
  dtype = vocabulary.accumulator_dtype(inputs)
  z = vocabulary.logit_of(inputs.student_hidden, inputs.student_head, inputs.ids, problem.student_temperature, dtype)
  y = vocabulary.logit_of(inputs.teacher_hidden, inputs.teacher_head, inputs.ids, problem.teacher_temperature, dtype)
  return z - student_log_normaliser, y - teacher_log_normaliser
