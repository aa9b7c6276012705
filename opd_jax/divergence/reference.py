"""The specification: each divergence written out over the full [T, V] arrays.

Plain definitions and ordinary automatic differentiation; float64 inputs are computed in float64. Every other
implementation is tested against this one. It is also the `dense` baseline of the benchmarks.
"""

import jax
import jax.numpy as jnp

from opd_jax.divergence.problem import MASKED, Divergence, Inputs, Problem


def logits(hidden: jax.Array, head: jax.Array, vocab_size: int, temperature: float, softcap: float | None) -> jax.Array:
  """[T, V] logits of the unpadded vocabulary, capped and then divided by the temperature."""
  dtype = jnp.promote_types(jnp.float32, jnp.promote_types(hidden.dtype, head.dtype))
  head = head[:vocab_size].astype(dtype)
  raw = jnp.einsum("td,vd->tv", hidden.astype(dtype), head, precision=jax.lax.Precision.HIGHEST)
  return (raw if softcap is None else softcap * jnp.tanh(raw / softcap)) / temperature


def divergence(problem: Problem, inputs: Inputs) -> Divergence:
  """The divergence of `problem`; the gradient of its `loss` is left to autodiff."""
  fixed, size = jax.lax.stop_gradient, problem.vocab_size
  z = logits(inputs.student_hidden, inputs.student_head, size, problem.student_temperature, problem.student_softcap)
  y = logits(
    *fixed((inputs.teacher_hidden, inputs.teacher_head)), size, problem.teacher_temperature, problem.teacher_softcap
  )
  log_p, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(y)
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  sampled = (None, None)
  if inputs.ids is not None:
    sampled = tuple(jnp.take_along_axis(log, inputs.ids[:, None], axis=1)[:, 0] for log in (log_p, log_q))
  masses = (None, None, None)
  if problem.support is not None:
    inside = fixed(_support(problem, inputs, z, y))
    per_token = objective = _on_support(problem, inputs, inside, z, y, log_p, log_q, sampled)
    masses = (jnp.sum(jnp.where(inside, values, 0), axis=1) for values in (p, q, jnp.minimum(p, q)))
  elif problem.kind == "reverse_kl":
    per_token = objective = jnp.sum(p * (log_p - log_q), axis=1)
  elif problem.kind == "forward_kl":
    per_token = objective = jnp.sum(q * (log_q - log_p), axis=1)
  elif problem.kind == "jsd":
    log_m = jnp.logaddexp(jnp.log(problem.beta) + log_q, jnp.log1p(-problem.beta) + log_p)
    of_teacher, of_student = jnp.sum(q * (log_q - log_m), axis=1), jnp.sum(p * (log_p - log_m), axis=1)
    per_token = objective = problem.beta * of_teacher + (1 - problem.beta) * of_student
  else:
    per_token = sampled[0] - sampled[1]
    objective = -fixed(-per_token if inputs.advantages is None else inputs.advantages) * sampled[0]
  # Where the value and the source of the gradient differ (the policy gradients), each keeps its own part.
  loss = jnp.sum(fixed(inputs.weights) * (fixed(per_token - objective) + objective))
  results = {
    "per_token": per_token,
    "student_entropy": -jnp.sum(p * log_p, axis=1),
    "teacher_entropy": -jnp.sum(q * log_q, axis=1),
    "student_logsumexp": jax.nn.logsumexp(z, axis=1),
    "teacher_logsumexp": jax.nn.logsumexp(y, axis=1),
    **dict(zip(("student_logprob", "teacher_logprob"), sampled)),
    **dict(zip(("student_mass", "teacher_mass", "overlap"), masses)),
  }
  return Divergence(loss=loss, **fixed(results))


def _support(problem: Problem, inputs: Inputs, z: jax.Array, y: jax.Array) -> jax.Array:
  """[T, V] bool: the entries of the support."""

  def best(logits):
    _, ids = jax.lax.top_k(logits, problem.top_k)
    return jnp.zeros(logits.shape, bool).at[jnp.arange(logits.shape[0])[:, None], ids].set(True)

  inside = {"student": lambda: best(z), "teacher": lambda: best(y), "union": lambda: best(z) | best(y)}[
    problem.support
  ]()
  return inside | (jnp.arange(z.shape[1]) == inputs.ids[:, None]) if problem.with_sampled else inside


def _on_support(problem: Problem, inputs: Inputs, inside, z, y, log_p, log_q, sampled):
  """[T] loss on a support, by its definition."""
  if problem.kind == "forward_kl":
    log_a, log_b, a, b = log_q, log_p, y, z
  else:
    log_a, log_b, a, b = log_p, log_q, z, y
  if problem.repair == "renormalize":
    log_a, log_b = (jax.nn.log_softmax(jnp.where(inside, logits, MASKED)) for logits in (a, b))
    return jnp.sum(jnp.where(inside, jnp.exp(log_a) * (log_a - log_b), 0), axis=1)
  term = jnp.exp(log_a) * (log_a - log_b)
  if problem.repair == "tail":
    rest_a, rest_b = (jax.nn.logsumexp(jnp.where(inside, MASKED, log), axis=1) for log in (log_a, log_b))
    return jnp.sum(jnp.where(inside, term, 0), axis=1) + jnp.exp(rest_a) * (rest_a - rest_b)
  if problem.repair == "generalized":
    return jnp.sum(jnp.where(inside, term - jnp.exp(log_a) + jnp.exp(log_b), 0), axis=1)
  if problem.repair == "truncate":
    return jnp.sum(jnp.where(inside, term, 0), axis=1)
  missed = ~jnp.take_along_axis(inside, inputs.ids[:, None], axis=1)[:, 0]
  score = jax.lax.stop_gradient(sampled[0] - sampled[1])
  if problem.repair == "head_tail":
    ratio = jnp.exp(sampled[0] - jax.lax.stop_gradient(sampled[0]))
    return jnp.sum(jnp.where(inside, term, 0), axis=1) + jnp.where(missed, score * ratio, 0)
  head = jnp.sum(jnp.where(inside, term - jnp.exp(log_a), 0), axis=1)
  return head + jnp.where(missed, score * sampled[0], 0)
