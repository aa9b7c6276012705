"""The op on a mesh: the vocabulary split over `tensor`, the tokens over every other axis.

             tensor 0         tensor 1                       collectives
  data 0   |  z[:, :V/2]  |   z[:, V/2:]  |    row sums: pmax, psum over tensor (a few floats a token)
  data 1   |              |               |    dH: psum over tensor      dW: psum over data

Each device runs an ordinary implementation on its own tokens and its own rows of the heads. The `custom_vjp` stays
outside and each direction has a `shard_map` of its own, so no transpose rule of `shard_map` is relied on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opd_jax.divergence.problem import Inputs, Problem

VOCAB_AXIS = "tensor"


def over_mesh(mesh: Mesh, problem: Problem, run: Callable, inputs: Inputs, per_token):
  """Runs an implementation on every device.

  Args:
    mesh: its axis `tensor` (if it has one) splits the vocabulary, all others the tokens. A student's head whose rows do
      not split evenly is padded (copied) first, and so is a teacher's of another length; padded rows get no gradient.
    problem: the call.
    run: (problem, inputs, per_token, axis) -> (per-token results, d_hidden or None, d_head or None), of one device.
    inputs: the arrays, whole.
    per_token: more arrays [T, ...], in any pytree.

  Returns:
    What `run` returns, whole.
  """
  axis = VOCAB_AXIS if VOCAB_AXIS in mesh.axis_names else None
  token_axes = tuple(name for name in mesh.axis_names if name != axis)
  vocab_parts = mesh.shape.get(VOCAB_AXIS, 1)
  token_parts = mesh.size // vocab_parts
  tokens, student_rows = inputs.weights.shape[0], inputs.student_head.shape[0]
  by_token, by_vocab = PartitionSpec(token_axes), PartitionSpec(axis)

  def whole_tokens(array):
    padded = jnp.pad(array, [(0, -tokens % token_parts)] + [(0, 0)] * (array.ndim - 1))
    return jax.lax.with_sharding_constraint(padded, NamedSharding(mesh, by_token))

  def even_rows(head):
    # Both heads must put the same vocabulary ids on the same device, however each was padded; the student's, which
    # has a gradient to give back, stays where it is stored.
    rows = -(-student_rows // vocab_parts) * vocab_parts
    head = jnp.pad(head[:rows], [(0, max(rows - head.shape[0], 0)), (0, 0)])
    return jax.lax.with_sharding_constraint(head, NamedSharding(mesh, by_vocab))

  heads = {"student_head": even_rows(inputs.student_head), "teacher_head": even_rows(inputs.teacher_head)}
  others = {
    name: None if array is None else whole_tokens(array) for name, array in vars(inputs).items() if name not in heads
  }
  specs = Inputs(**{name: by_vocab if name in heads else by_token for name in vars(inputs)})

  def one_device(inputs, per_token):
    results, d_hidden, d_head = run(problem, inputs, per_token, axis)
    return results, d_hidden, d_head if d_head is None else jax.lax.psum(d_head, token_axes)

  results, d_hidden, d_head = jax.shard_map(
    one_device,
    mesh=mesh,
    in_specs=(specs, by_token),
    out_specs=(by_token, by_token, by_vocab),
    check_vma=False,
  )(Inputs(**heads, **others), jax.tree.map(whole_tokens, per_token))
  results, d_hidden = jax.tree.map(lambda array: array[:tokens], (results, d_hidden))
  return results, d_hidden, d_head if d_head is None else d_head[:student_rows]
