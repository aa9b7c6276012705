"""The passes over the vocabulary that the XLA implementations are made of.

  first_pass    both models' logits, block by block -> row sums, support; keeps what the later passes need, if asked
  settle        row sums -> the loss of each token and the coefficients of its gradient (a second pass where needed)
  gradients     log-probabilities, block by block -> dz -> dH, dW

A later pass takes its log-probabilities either from what the first pass kept (token_chunk) or from the same products
again (vocab_chunk). What is kept is relative to the running maxima of its block,

      z - m_s   and   (z - m_s) - (y - m_t),

in bf16 where the inputs are bf16: the entries that matter (z near the maximum, y near z) are small numbers there,
which bf16 holds well. Rounding the logits themselves would drown the gradient of a close pair (kernel.md, section 5:
gradient error 0.96 at KL 1e-3 against 0.005).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence import formulas, support
from opd_jax.divergence.blocks import (
  Blocks,
  accumulator_dtype,
  block_logits,
  dot,
  is_short,
  sampled_logits,
  squash_slope,
)
from opd_jax.divergence.problem import Inputs, Problem


class Rows(NamedTuple):
  """The results of each token, [T] (None where the problem has no such thing)."""

  per_token: jax.Array
  student_entropy: jax.Array
  teacher_entropy: jax.Array
  student_logsumexp: jax.Array
  teacher_logsumexp: jax.Array
  student_logprob: jax.Array | None = None
  teacher_logprob: jax.Array | None = None
  student_mass: jax.Array | None = None
  teacher_mass: jax.Array | None = None
  overlap: jax.Array | None = None


class Gradient(NamedTuple):
  """What the gradient pass needs of each token, [T] or [T, K]."""

  student: formulas.Normaliser
  teacher: formulas.Normaliser
  centre: jax.Array | None  # of the full-vocabulary divergences
  coefficients: support.Coefficients | None  # of the others


class Kept(NamedTuple):
  """What the first pass keeps of a block: relative logits [T, size] and the maxima [T] they are relative to."""

  student: jax.Array | None
  difference: jax.Array | None
  student_max: jax.Array
  teacher_max: jax.Array | None


# (block index, what was kept of it or None) -> log p and d = log p - log q of the block, [T, size]
Source = Callable[[jax.Array, Kept | None], tuple[jax.Array, jax.Array | None]]


def first_pass(problem: Problem, inputs: Inputs, blocks: Blocks, *, keep_student: bool, keep_difference: bool):
  """One sweep of both heads.

  Returns:
    (statistics of the whole vocabulary, support or None, `Kept` of every block, stacked).
  """
  tokens, dtype = inputs.weights.shape[0], accumulator_dtype(inputs)
  kept_dtype = jnp.bfloat16 if is_short(inputs) else dtype
  chosen = support.start(problem, tokens, dtype) if problem.support else None

  def step(carry, index):
    seen, chosen = carry
    z, y = block_logits(problem, inputs, blocks, index)
    seen = formulas.update(problem, seen, z, y)
    if chosen is not None:
      chosen = support.update(problem, chosen, blocks.ids(index), z, y)
    z, y = z - seen.student_max[:, None], y - seen.teacher_max[:, None]
    kept = Kept(
      z.astype(kept_dtype) if keep_student else None,
      (z - y).astype(kept_dtype) if keep_difference else None,
      seen.student_max,
      seen.teacher_max,
    )
    return (seen, chosen), kept

  start = (formulas.start((tokens,), dtype), chosen)
  (total, chosen), kept = lax.scan(step, start, jnp.arange(blocks.count))
  if blocks.axis is not None:
    total = formulas.merge(problem, total, blocks.axis)
    chosen = support.merge(problem, chosen, blocks.axis) if problem.support else None
  return total, support.combined(problem, chosen) if problem.support else None, kept


def from_kept(inputs: Inputs, total: formulas.Statistics) -> Source:
  """The log-probabilities of a block from what was kept of it."""
  dtype, student, teacher = accumulator_dtype(inputs), total.student, total.teacher

  def source(index, kept):
    del index
    student_offset = student.log_probability(kept.student_max)
    log_p = kept.student.astype(dtype) + student_offset[:, None]
    if kept.difference is None:
      return log_p, None
    offset = student_offset - teacher.log_probability(kept.teacher_max)
    return log_p, kept.difference.astype(dtype) + offset[:, None]

  return source


def from_tiles(problem: Problem, blocks: Blocks, total: formulas.Statistics, kept: Kept, rows_of_tile: int) -> Source:
  """The log-probabilities of a block from what a kernel kept of all tiles: logits [T, rows], maxima [T, tiles]."""

  def source(index, _):
    columns = blocks.start(index) + jnp.arange(blocks.size)

    def of_block(values):
      return lax.dynamic_slice_in_dim(values, blocks.start(index), blocks.size, axis=1).astype(jnp.float32)

    student_offset = total.student.log_probability(kept.student_max)[:, columns // rows_of_tile]
    log_p = blocks.mask(index, of_block(kept.student) + student_offset)
    if kept.difference is None:
      return log_p, None
    teacher_offset = total.teacher.log_probability(kept.teacher_max)[:, columns // rows_of_tile]
    return log_p, of_block(kept.difference) + (student_offset - teacher_offset)

  return source


def from_products(problem: Problem, inputs: Inputs, blocks: Blocks, student, teacher) -> Source:
  """The log-probabilities of a block from its logits, computed again; `student`, `teacher`: `formulas.Normaliser`."""

  def source(index, kept):
    del kept
    z, y = block_logits(problem, inputs, blocks, index)
    log_p = student.log_probability(z)
    return log_p, log_p - teacher.log_probability(y)

  return source


def settle(problem: Problem, inputs: Inputs, blocks: Blocks, total, entries, kept, source: Source):
  """From the sums of the first pass to (`Rows`, `Gradient`)."""
  normalisers, sampled = (total.student, total.teacher), None
  if inputs.ids is not None:
    logits = sampled_logits(problem, inputs, blocks)
    sampled = tuple(normaliser.log_probability(logit) for normaliser, logit in zip(normalisers, logits))
    if problem.with_sampled:
      entries = support.joined_by(entries, inputs.ids, *logits)
  logsumexps = (normaliser.logsumexp for normaliser in normalisers)
  rows = Rows(None, total.student_entropy, total.teacher_entropy, *logsumexps, *(sampled or (None, None)))
  if problem.support:
    tails = _tails(blocks, entries, kept, source) if problem.needs_second_pass else None
    score = (inputs.ids, *sampled) if problem.repair in ("score_tail", "head_tail") else None
    settled = support.settle(problem, entries, normalisers, tails, score)
    rows = rows._replace(
      per_token=settled.per_token,
      student_mass=settled.student_mass,
      teacher_mass=settled.teacher_mass,
      overlap=settled.overlap,
    )
    return rows, Gradient(*normalisers, None, settled.gradient)
  if problem.kind == "sampled":
    per_token = sampled[0] - sampled[1]
    advantages = -per_token if inputs.advantages is None else inputs.advantages.astype(per_token.dtype)
    at_sampled = advantages * jnp.expm1(sampled[0])
    coefficients = support.Coefficients(advantages, None, inputs.ids[:, None], at_sampled[:, None])
    return rows._replace(per_token=per_token), Gradient(*normalisers, None, coefficients)
  if problem.kind == "jsd":
    of_student, of_teacher = _mixture(problem, blocks, total, kept, source)
    per_token = problem.beta * of_teacher + (1 - problem.beta) * of_student
    return rows._replace(per_token=per_token), Gradient(*normalisers, of_student, None)
  per_token = formulas.full_kl(problem, total)
  return rows._replace(per_token=per_token), Gradient(*normalisers, per_token, None)


def gradients(
  problem: Problem,
  inputs: Inputs,
  blocks: Blocks,
  gradient: Gradient,
  kept: Kept | None,
  source: Source,
  d_head: jax.Array | None,
  want_hidden: bool,
):
  """The gradient pass.

  Args:
    problem: the call.
    inputs: the arrays.
    blocks: how the vocabulary is cut.
    gradient: from `settle`.
    kept: from `first_pass`, where `source` reads it.
    source: the log-probabilities of a block.
    d_head: [Vs, Ds] float32, the sum over earlier tokens, or None where it is not wanted.
    want_hidden: whether the gradient of the hidden states is wanted.

  Returns:
    (d_hidden [T, Ds] float32 or None, d_head with these tokens added).
  """
  dtype = accumulator_dtype(inputs)

  def step(sums, index_and_kept):
    d_hidden, d_head = sums
    index, block_kept = index_and_kept
    log_p, d = source(index, block_kept)
    if gradient.coefficients is None:
      dz = formulas.dense_gradient(problem, gradient.centre[:, None], log_p, d)
    else:
      dz = gradient.coefficients.centre[:, None] * jnp.exp(log_p)
      if gradient.coefficients.tilt is not None:
        dz = dz - jnp.exp(log_p + gradient.coefficients.tilt[:, None])
      dz = support.set_values(blocks, index, gradient.coefficients, dz)
    z = log_p + gradient.student.logsumexp[:, None]
    dz = dz * squash_slope(z, problem.student_temperature, problem.student_softcap) * inputs.weights[:, None]
    # Back to the operands' own type: a float32 dz would make XLA widen both operands of the two products below.
    dz = dz.astype(inputs.student_hidden.dtype)
    if want_hidden:
      d_hidden = d_hidden + dot(dz, blocks.rows_of(inputs.student_head, index), (1, 0), dtype)
    if d_head is not None:
      grown = blocks.rows_of(d_head, index) + dot(dz, inputs.student_hidden, (0, 0), dtype)
      d_head = lax.dynamic_update_slice_in_dim(d_head, grown, blocks.start(index), axis=0)
    return (d_hidden, d_head), None

  d_hidden = jnp.zeros(inputs.student_hidden.shape, dtype) if want_hidden else None
  sums, _ = lax.scan(step, (d_hidden, d_head), (jnp.arange(blocks.count), kept))
  return sums


def _mixture(problem: Problem, blocks: Blocks, total: formulas.Statistics, kept, source: Source):
  """(KL(p||M), KL(q||M)) of each token."""
  zero = jnp.zeros_like(total.student_max)

  def step(sums, index_and_kept):
    terms = formulas.mixture_kl(problem, *source(*index_and_kept))
    return (sums[0] + terms[0], sums[1] + terms[1]), None

  sums, _ = lax.scan(step, (zero, zero), (jnp.arange(blocks.count), kept))
  return blocks.sum(sums)


def _tails(blocks: Blocks, entries: support.Entries, kept, source: Source):
  """(log-mass of p, of q) outside the support, of each token."""

  def step(carry, index_and_kept):
    log_p, d = source(*index_and_kept)
    return carry, support.outside(blocks, index_and_kept[0], entries, log_p, log_p - d)

  _, shares = lax.scan(step, None, (jnp.arange(blocks.count), kept))
  if blocks.axis is not None:
    shares = lax.all_gather(shares, blocks.axis, axis=0, tiled=True)
  return tuple(jax.nn.logsumexp(share, axis=0) for share in shares)
