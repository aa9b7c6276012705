"""The specification: each divergence written out over the full [T, V] arrays.

Plain definitions and ordinary automatic differentiation; float64 inputs are computed in float64. Every other
implementation is tested against this one. It is also the `dense` baseline of the benchmarks.
"""

import jax
import jax.numpy as jnp

from opd_jax.divergence.problem import Divergence, Inputs, Problem


def logits(hidden: jax.Array, head: jax.Array, vocab_size: int, temperature: float) -> jax.Array:
  """[T, V] logits of the unpadded vocabulary, divided by the temperature."""
  dtype = jnp.promote_types(jnp.float32, jnp.promote_types(hidden.dtype, head.dtype))
  precision = jax.lax.Precision.HIGHEST
  return (
    jnp.einsum("td,vd->tv", hidden.astype(dtype), head[:vocab_size].astype(dtype), precision=precision) / temperature
  )


def divergence(problem: Problem, inputs: Inputs) -> Divergence:
  """The divergence of `problem`, differentiable in everything that autodiff can reach."""
  z = logits(inputs.student_hidden, inputs.student_head, problem.vocab_size, problem.student_temperature)
  y = logits(inputs.teacher_hidden, inputs.teacher_head, problem.vocab_size, problem.teacher_temperature)
  y = jax.lax.stop_gradient(y)
  log_p, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(y)
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  student_logprob = teacher_logprob = None
  if inputs.ids is not None:
    student_logprob = jnp.take_along_axis(log_p, inputs.ids[:, None], axis=1)[:, 0]
    teacher_logprob = jnp.take_along_axis(log_q, inputs.ids[:, None], axis=1)[:, 0]
  if problem.kind == "reverse_kl":
    objective = per_token = jnp.sum(p * (log_p - log_q), axis=1)
  elif problem.kind == "forward_kl":
    objective = per_token = jnp.sum(q * (log_q - log_p), axis=1)
  elif problem.kind == "jsd":
    log_m = jnp.logaddexp(jnp.log(problem.beta) + log_q, jnp.log1p(-problem.beta) + log_p)
    to_teacher, to_student = jnp.sum(q * (log_q - log_m), axis=1), jnp.sum(p * (log_p - log_m), axis=1)
    objective = per_token = problem.beta * to_teacher + (1 - problem.beta) * to_student
  else:
    per_token = student_logprob - teacher_logprob
    advantages = -per_token if inputs.advantages is None else inputs.advantages
    surrogate = -jax.lax.stop_gradient(advantages) * student_logprob
    # The value is the estimator of the divergence; the gradient is the policy gradient's.
    objective = jax.lax.stop_gradient(per_token - surrogate) + surrogate
  weights = jax.lax.stop_gradient(inputs.weights)
  fixed = jax.lax.stop_gradient
  return Divergence(
    loss=jnp.sum(weights * objective),
    per_token=fixed(per_token),
    student_entropy=fixed(-jnp.sum(p * log_p, axis=1)),
    teacher_entropy=-jnp.sum(q * log_q, axis=1),
    student_logsumexp=fixed(jax.nn.logsumexp(z, axis=1)),
    teacher_logsumexp=jax.nn.logsumexp(y, axis=1),
    student_logprob=fixed(student_logprob) if student_logprob is not None else None,
    teacher_logprob=teacher_logprob,
  )
