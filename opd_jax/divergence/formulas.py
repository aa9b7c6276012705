"""The mathematics of the divergences, one token by one block of vocabulary.

Notation: z, y are the student's and teacher's logits (already divided by their temperatures), p, q their softmaxes,
S, Q their log-normalisers, d = log p - log q. A block of vocabulary is enough for every function here: the sums over
the whole vocabulary live in `Statistics` and are corrected whenever a larger logit turns up.

All sums are float32. The accumulators hold differences from the running maxima, never raw logits, so that the rounding
error of a divergence is set by the divergence and not by the size of the logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.divergence.problem import MASKED, Problem


class Statistics(NamedTuple):
  """Running sums over the vocabulary seen so far, each [T]. With e = exp(z - m_s), f = exp(y - m_t):"""

  student_max: jax.Array  # m_s
  student_sum: jax.Array  # sum e
  student_moment: jax.Array  # sum e (z - m_s)
  teacher_max: jax.Array  # m_t
  teacher_sum: jax.Array  # sum f
  teacher_moment: jax.Array  # sum f (y - m_t)
  cross: jax.Array  # reverse_kl: sum e ((z - m_s) - (y - m_t)); forward_kl: sum f ((y - m_t) - (z - m_s)); else 0


class Rows(NamedTuple):
  """What is known of each token once the whole vocabulary was seen, each [T]."""

  per_token: jax.Array
  centre: jax.Array  # the row's scalar in the gradient: KL(p||q), KL(p||M) or the advantage
  student_logsumexp: jax.Array
  teacher_logsumexp: jax.Array
  student_entropy: jax.Array
  teacher_entropy: jax.Array


def start(tokens: int, dtype) -> Statistics:
  """Statistics of an empty vocabulary."""
  low, zero = jnp.full((tokens,), MASKED, dtype), jnp.zeros((tokens,), dtype)
  return Statistics(low, zero, zero, low, zero, zero, zero)


def update(problem: Problem, seen: Statistics, z: jax.Array, y: jax.Array) -> Statistics:
  """Adds a block of logits z, y [T, block] (kernel.md, section 2; masked entries hold MASKED in both)."""
  student_max = jnp.maximum(seen.student_max, z.max(axis=1))
  teacher_max = jnp.maximum(seen.teacher_max, y.max(axis=1))
  student_rise, teacher_rise = student_max - seen.student_max, teacher_max - seen.teacher_max
  student_scale, teacher_scale = jnp.exp(-student_rise), jnp.exp(-teacher_rise)
  z, y = z - student_max[:, None], y - teacher_max[:, None]
  e, f = jnp.exp(z), jnp.exp(y)
  # Raising a maximum by `rise` lowers every (z - m) by it: the old moment loses rise * (old sum) before it is rescaled.
  student_moment = student_scale * (seen.student_moment - student_rise * seen.student_sum) + jnp.sum(e * z, axis=1)
  teacher_moment = teacher_scale * (seen.teacher_moment - teacher_rise * seen.teacher_sum) + jnp.sum(f * y, axis=1)
  cross = seen.cross
  if problem.kind == "reverse_kl":
    moved = seen.cross - (student_rise - teacher_rise) * seen.student_sum
    cross = student_scale * moved + jnp.sum(e * (z - y), axis=1)
  elif problem.kind == "forward_kl":
    moved = seen.cross - (teacher_rise - student_rise) * seen.teacher_sum
    cross = teacher_scale * moved + jnp.sum(f * (y - z), axis=1)
  return Statistics(
    student_max,
    student_scale * seen.student_sum + jnp.sum(e, axis=1),
    student_moment,
    teacher_max,
    teacher_scale * seen.teacher_sum + jnp.sum(f, axis=1),
    teacher_moment,
    cross,
  )


def finish(
  problem: Problem,
  total: Statistics,
  chosen: tuple[jax.Array, jax.Array] | None,
  advantages: jax.Array | None,
  mixture: tuple[jax.Array, jax.Array] | None,
) -> Rows:
  """From the sums to the loss of each token.

  Args:
    problem: the call.
    total: the sums over the whole vocabulary.
    chosen: `sampled` only, (log p(a), log q(a)) of the sampled tokens, each [T].
    advantages: `sampled` only, [T] or None for -(log p(a) - log q(a)).
    mixture: `jsd` only, (KL(p||M), KL(q||M)), each [T].
  """
  student_log, teacher_log = jnp.log(total.student_sum), jnp.log(total.teacher_sum)
  if problem.kind == "reverse_kl":
    per_token = centre = total.cross / total.student_sum - student_log + teacher_log
  elif problem.kind == "forward_kl":
    per_token = centre = total.cross / total.teacher_sum - teacher_log + student_log
  elif problem.kind == "jsd":
    centre = mixture[0]
    per_token = problem.beta * mixture[1] + (1 - problem.beta) * mixture[0]
  else:
    per_token = chosen[0] - chosen[1]
    centre = -per_token if advantages is None else advantages
  return Rows(
    per_token,
    centre,
    total.student_max + student_log,
    total.teacher_max + teacher_log,
    student_log - total.student_moment / total.student_sum,
    teacher_log - total.teacher_moment / total.teacher_sum,
  )


def _log_mixture_over_student(beta: float, d: jax.Array) -> jax.Array:
  """log(M / p) with M = beta q + (1-beta) p, for any d = log p - log q: finite, and exact to first order at d = 0."""
  shrink = jnp.expm1(-jnp.abs(d))
  return jnp.where(d >= 0, jnp.log1p(beta * shrink), jnp.log1p((1 - beta) * shrink) - d)


def mixture_terms(problem: Problem, log_p: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The block's share of (KL(p||M), KL(q||M)), each [T], from log p and d [T, block]."""
  rise = _log_mixture_over_student(problem.beta, d)
  p, q = jnp.exp(log_p), jnp.exp(log_p - d)
  return jnp.sum(-p * rise, axis=1), jnp.sum(-q * (d + rise), axis=1)


def logit_gradient(problem: Problem, centre: jax.Array, log_p: jax.Array, d, is_sampled) -> jax.Array:
  """d per_token / d z of a block, [T, block].

  Args:
    problem: the call.
    centre: [T] from `Rows`.
    log_p: [T, block] student log-probabilities.
    d: [T, block] log p - log q (None for `sampled`).
    is_sampled: [T, block] bool, true at the sampled token (None for the other kinds).
  """
  p, centre = jnp.exp(log_p), centre[:, None]
  if problem.kind == "reverse_kl":
    return p * (d - centre)
  if problem.kind == "forward_kl":
    return p - jnp.exp(log_p - d)
  if problem.kind == "jsd":
    return (problem.beta - 1) * p * (_log_mixture_over_student(problem.beta, d) + centre)
  return centre * (p - is_sampled)
