"""The mathematics of the full-vocabulary divergences, one token by one block of vocabulary.

Notation: z, y are the student's and teacher's logits (already divided by their temperatures), p, q their softmaxes,
S, Q their log-normalisers, d = log p - log q. A block of vocabulary is enough for every function here: the sums over
the whole vocabulary live in `Statistics` and are corrected whenever a larger logit turns up.

The accumulators hold differences from the running maxima, never raw logits, so that the rounding error of a divergence
is set by the divergence and not by the size of the logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence.problem import MASKED, Problem


class Normaliser(NamedTuple):
  """A log-normaliser in two parts, each [T]: their sum would round away digits of `log` where the logits are large."""

  max: jax.Array
  log: jax.Array  # log sum exp(logit - max)

  @property
  def logsumexp(self) -> jax.Array:
    """The log-normaliser itself."""
    return self.max + self.log

  def log_probability(self, logits: jax.Array) -> jax.Array:
    """Of logits [T] or [T, N]."""
    over = (...,) + (None,) * (logits.ndim - 1)
    return (logits - self.max[over]) - self.log[over]


class Statistics(NamedTuple):
  """Running sums over the vocabulary seen so far, each [T] or [T, 1]. With e = exp(z - m_s), f = exp(y - m_t):"""

  student_max: jax.Array  # m_s
  student_sum: jax.Array  # sum e
  student_moment: jax.Array  # sum e (z - m_s)
  teacher_max: jax.Array  # m_t
  teacher_sum: jax.Array  # sum f
  teacher_moment: jax.Array  # sum f (y - m_t)
  cross: jax.Array  # reverse_kl: sum e ((z - m_s) - (y - m_t)); forward_kl: sum f ((y - m_t) - (z - m_s)); else 0

  @property
  def student(self) -> Normaliser:
    """Of the student's logits."""
    return Normaliser(self.student_max, jnp.log(self.student_sum))

  @property
  def teacher(self) -> Normaliser:
    """Of the teacher's logits."""
    return Normaliser(self.teacher_max, jnp.log(self.teacher_sum))

  @property
  def student_entropy(self) -> jax.Array:
    """-sum p log p."""
    return jnp.log(self.student_sum) - self.student_moment / self.student_sum

  @property
  def teacher_entropy(self) -> jax.Array:
    """-sum q log q."""
    return jnp.log(self.teacher_sum) - self.teacher_moment / self.teacher_sum


def start(shape: tuple[int, ...], dtype) -> Statistics:
  """Statistics of an empty vocabulary, each of `shape`: (T,), or (T, 1) in the kernels."""
  low, zero = jnp.full(shape, MASKED, dtype), jnp.zeros(shape, dtype)
  return Statistics(low, zero, zero, low, zero, zero, zero)


def _relative_to(problem: Problem, seen: Statistics, student_max: jax.Array, teacher_max: jax.Array) -> Statistics:
  """The same sums, counted from larger maxima.

  Raising a maximum by `rise` lowers every (z - m) by it: a moment loses rise * sum, and all is scaled by exp(-rise).
  """
  student_rise, teacher_rise = student_max - seen.student_max, teacher_max - seen.teacher_max
  student_scale, teacher_scale = jnp.exp(-student_rise), jnp.exp(-teacher_rise)
  cross = seen.cross
  if problem.kind == "reverse_kl":
    cross = student_scale * (cross - (student_rise - teacher_rise) * seen.student_sum)
  elif problem.kind == "forward_kl":
    cross = teacher_scale * (cross - (teacher_rise - student_rise) * seen.teacher_sum)
  return Statistics(
    student_max,
    student_scale * seen.student_sum,
    student_scale * (seen.student_moment - student_rise * seen.student_sum),
    teacher_max,
    teacher_scale * seen.teacher_sum,
    teacher_scale * (seen.teacher_moment - teacher_rise * seen.teacher_sum),
    cross,
  )


def update(problem: Problem, seen: Statistics, z: jax.Array, y: jax.Array) -> Statistics:
  """Adds a block of logits z, y [T, block]; masked entries hold MASKED in both (kernel.md, section 2).

  Statistics of [T, 1] instead of [T] give the same: the kernels hold columns.
  """
  columns = seen.student_max.ndim == 2

  def over_block(reduce, values):
    return reduce(values, axis=1, keepdims=columns)

  def spread(row):
    return row if columns else row[:, None]

  student_max = jnp.maximum(seen.student_max, over_block(jnp.max, z))
  teacher_max = jnp.maximum(seen.teacher_max, over_block(jnp.max, y))
  old = _relative_to(problem, seen, student_max, teacher_max)
  z, y = z - spread(student_max), y - spread(teacher_max)
  e, f = jnp.exp(z), jnp.exp(y)
  cross = old.cross
  if problem.kind == "reverse_kl":
    cross += over_block(jnp.sum, e * (z - y))
  elif problem.kind == "forward_kl":
    cross += over_block(jnp.sum, f * (y - z))
  return Statistics(
    student_max,
    old.student_sum + over_block(jnp.sum, e),
    old.student_moment + over_block(jnp.sum, e * z),
    teacher_max,
    old.teacher_sum + over_block(jnp.sum, f),
    old.teacher_moment + over_block(jnp.sum, f * y),
    cross,
  )


def merge(problem: Problem, seen: Statistics, axis: str) -> Statistics:
  """The statistics of the whole vocabulary from those of the devices that share it."""
  highest = lax.pmax((seen.student_max, seen.teacher_max), axis)
  moved = _relative_to(problem, seen, *highest)
  student_max, teacher_max = highest
  return Statistics(*lax.psum(moved, axis))._replace(student_max=student_max, teacher_max=teacher_max)


def total(problem: Problem, parts: Statistics) -> Statistics:
  """The statistics of the whole vocabulary from those of its parts, stacked: [parts, T] -> [T]."""
  student_max, teacher_max = parts.student_max.max(axis=0), parts.teacher_max.max(axis=0)
  moved = _relative_to(problem, parts, student_max, teacher_max)
  return Statistics(
    student_max,
    moved.student_sum.sum(0),
    moved.student_moment.sum(0),
    teacher_max,
    moved.teacher_sum.sum(0),
    moved.teacher_moment.sum(0),
    moved.cross.sum(0),
  )


def full_kl(problem: Problem, total: Statistics) -> jax.Array:
  """[T] KL(p||q) or KL(q||p), summed directly, never as a difference of entropies."""
  # The logarithms first, as in the log-probabilities of the gradient pass: where one entry holds all of p, its d and
  # the KL are then the same number, and their difference 0 however large both are.
  logs = jnp.log(total.teacher_sum) - jnp.log(total.student_sum)
  if problem.kind == "reverse_kl":
    return total.cross / total.student_sum + logs
  return total.cross / total.teacher_sum - logs


def _log_mixture_over_student(beta: float, d: jax.Array) -> jax.Array:
  """log(M / p) with M = beta q + (1-beta) p, for any d = log p - log q: finite, and exact to first order at d = 0."""
  # expm1(-|d|), by an identity that the TPU kernels' compiler has the functions for.
  shrink = -jnp.tanh(jnp.abs(d) / 2) * (1 + jnp.exp(-jnp.abs(d)))
  return jnp.where(d >= 0, jnp.log1p(beta * shrink), jnp.log1p((1 - beta) * shrink) - d)


def mixture_kl(problem: Problem, log_p: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The block's share of (KL(p||M), KL(q||M)), each [T], from log p and d [T, block]."""
  rise = _log_mixture_over_student(problem.beta, d)
  p, q = jnp.exp(log_p), jnp.exp(log_p - d)
  return jnp.sum(-p * rise, axis=1), jnp.sum(-q * (d + rise), axis=1)


def dense_gradient(problem: Problem, centre: jax.Array, log_p: jax.Array, d: jax.Array) -> jax.Array:
  """d per_token / d z of a block [T, block], for the divergences over the whole vocabulary.

  Args:
    problem: the call.
    centre: [T, 1] KL(p||q) for `reverse_kl`, KL(p||M) for `jsd`; not read by `forward_kl`.
    log_p: [T, block] student log-probabilities.
    d: [T, block] log p - log q.
  """
  p = jnp.exp(log_p)
  if problem.kind == "reverse_kl":
    return p * (d - centre)
  if problem.kind == "forward_kl":
    return p - jnp.exp(log_p - d)
  return (problem.beta - 1) * p * (_log_mixture_over_student(problem.beta, d) + centre)
