"""Which implementation runs, on which devices, and how its gradient reaches autodiff.

Most implementations compute the gradient of the weighted sum in the forward pass, where the logits are at hand; the
backward pass only scales it by the cotangent of `loss`. `vocab_chunk` keeps a few floats a token instead and computes
its gradient in the backward pass. Either way nothing of the gradient is computed where it is not asked for.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence import pallas_gpu, pallas_tpu, token_chunk, vocab_chunk
from opd_jax.divergence.blocks import accumulator_dtype
from opd_jax.divergence.problem import Divergence, Inputs, Problem
from opd_jax.divergence.sharded import over_mesh

_EAGER = {
  "token_chunk": token_chunk.rows_and_gradients,
  "pallas_tpu": pallas_tpu.rows_and_gradients,
  "pallas_gpu": pallas_gpu.rows_and_gradients,
}
# Below this a TPU kernel's tiles would be mostly padding.
_KERNEL_VOCAB = 1024


@dataclasses.dataclass(frozen=True)
class Plan:
  """Who computes a `Problem`, and where."""

  implementation: str
  mesh: jax.sharding.Mesh | None = None
  interpret: bool = False


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(plan: Plan, problem: Problem, student_hidden, student_head, *fixed) -> Divergence:
  """The op without its [T, V] arrays. `fixed` holds the fields of `Inputs` after the first two: no gradient."""
  inputs = Inputs(student_hidden, student_head, *fixed)
  if plan.implementation == "vocab_chunk":
    rows, _ = _settled(plan, problem, inputs)
  else:
    rows, _, _ = _rows_and_gradients(plan, problem, inputs, (False, False))
  return _answer(inputs, rows)


def _forward(plan, problem, student_hidden, student_head, *fixed):
  wanted = (student_hidden.perturbed, student_head.perturbed)
  values = tuple(None if primal is None else primal.value for primal in (student_hidden, student_head, *fixed))
  inputs = Inputs(*values)
  if plan.implementation == "vocab_chunk":
    rows, gradient = _settled(plan, problem, inputs)
    return _answer(inputs, rows), _Residuals(wanted, values[:2], inputs, gradient)
  rows, *gradients = _rows_and_gradients(plan, problem, inputs, wanted)
  # Of the student's arrays only the types are needed: a cotangent has the type of what it belongs to.
  types = tuple(jnp.zeros((0,), array.dtype) for array in values[:2])
  return _answer(inputs, rows), _Residuals(wanted, types, None, tuple(gradients))


def _backward(plan, problem, residuals, cotangent):
  scale, nothing = cotangent.loss, (None,) * 5
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return None, None, *nothing
  gradients = residuals.gradient
  if plan.implementation == "vocab_chunk":
    gradients = _later_gradients(plan, problem, residuals.inputs, residuals.gradient, residuals.wanted)
  scaled = (None if g is None else (g * scale).astype(s.dtype) for g, s in zip(gradients, residuals.student))
  return *scaled, *nothing


fused.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.tree_util.register_dataclass, data_fields=["student", "inputs", "gradient"], meta_fields=["wanted"])
@dataclasses.dataclass(frozen=True)
class _Residuals:
  wanted: tuple[bool, bool]
  student: tuple[jax.Array, jax.Array]  # of the types of the student's hidden states and head
  inputs: Inputs | None  # vocab_chunk only
  gradient: object  # the two gradients, or what vocab_chunk needs to form them


def _rows_and_gradients(plan: Plan, problem: Problem, inputs: Inputs, wanted: tuple[bool, bool]):
  """(`Rows`, d_hidden or None, d_head or None), all in the forward pass."""

  def run(problem, inputs, _, axis):
    if plan.implementation == "auto":
      return _automatic(problem, inputs, wanted, axis)
    if plan.interpret:
      return _EAGER[plan.implementation](problem, inputs, wanted, axis, interpret=True)
    return _EAGER[plan.implementation](problem, inputs, wanted, axis)

  return run(problem, inputs, None, None) if plan.mesh is None else over_mesh(plan.mesh, problem, run, inputs, None)


def _automatic(problem: Problem, inputs: Inputs, wanted: tuple[bool, bool], axis: str | None):
  """The kernel on a TPU, where it has the problem; plain XLA everywhere else. Decided when the program is lowered.

  So compiling for a TPU on another machine takes the TPU's branch. A GPU's kernel is not chosen before it was measured.
  """
  plain = partial(token_chunk.rows_and_gradients, problem, wanted=wanted, axis=axis)
  has_kernel = problem.support is None and problem.vocab_size >= _KERNEL_VOCAB
  if not has_kernel or accumulator_dtype(inputs) != jnp.float32:
    return plain(inputs)
  return lax.platform_dependent(
    inputs, tpu=partial(pallas_tpu.rows_and_gradients, problem, wanted=wanted, axis=axis), default=plain
  )


def _settled(plan: Plan, problem: Problem, inputs: Inputs):
  """(`Rows`, `Gradient`) of vocab_chunk."""
  if plan.mesh is None:
    return vocab_chunk.rows_and_coefficients(problem, inputs)

  def run(problem, inputs, _, axis):
    return vocab_chunk.rows_and_coefficients(problem, inputs, axis), None, None

  return over_mesh(plan.mesh, problem, run, inputs, None)[0]


def _later_gradients(plan: Plan, problem: Problem, inputs: Inputs, gradient, wanted: tuple[bool, bool]):
  """(d_hidden or None, d_head or None) of vocab_chunk."""
  if plan.mesh is None:
    return vocab_chunk.gradients(problem, inputs, gradient, wanted)

  def run(problem, inputs, gradient, axis):
    return None, *vocab_chunk.gradients(problem, inputs, gradient, wanted, axis)

  return over_mesh(plan.mesh, problem, run, inputs, gradient)[1:]


def _answer(inputs: Inputs, rows) -> Divergence:
  return Divergence(loss=jnp.sum(inputs.weights * rows.per_token), **rows._asdict())
