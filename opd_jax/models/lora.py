"""LoRA (arXiv 2106.09685): of a layer's weights only what is added to them is trained, a product of two small factors.

    weight [out, in] + alpha / R * b [out, R] @ a [R, in]          b starts at zero: the student of step 0 is its base

Factors follow from the table of parameters. Each keeps the axes of the weight that it shares, and is cut over the mesh
like them; the weight itself stays as it was read, in the dtype of the computation, without gradient or moments:

    gate_fd    [L, F, D]        a [L, R, D]        b [L, F, R]
    query_nhd  [L, N, H, D]     a [L, R, D]        b [L, N, H, R]
    output_dnh [L, D, N, H]     a [L, R, N, H]     b [L, D, R]

The sum is made where a layer reads its weights, one layer at a time (`decoder.forward`), and once a step for rollouts,
whose tokens do not pay for it (`Model.merged`). Products of the factors with the activations in its place would save
the backward pass the weight's own gradient, which lives for one layer; but in bfloat16 what writes and what is scored
would then be two students: the sum is rounded, two products are not.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from opd_jax.config import Lora
from opd_jax.errors import InputError, nearest
from opd_jax.models.architecture import Architecture
from opd_jax.models.parameters import Parameter, ParameterPath, layer_matrices, nested


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
  """A weight with its factors, in the weight's place in `Model.params`; all layers', or within their scan one layer's.

  Attributes:
    weight: [L, out.., in..], frozen.
    a, b: float32 [L, R, in..] and [L, out.., R].
    scale: alpha / rank.
  """

  weight: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = dataclasses.field(metadata={"static": True})

  def merged(self, dtype) -> jax.Array:
    """weight + scale * b a of one layer, summed in float32 and rounded once."""
    # A TPU would round the factors to bfloat16; they are so small that exact products cost nothing.
    added = jnp.tensordot(self.b, self.a, axes=1, precision=jax.lax.Precision.HIGHEST)
    return (self.weight.astype(jnp.float32) + self.scale * added).astype(dtype)


def is_adapted(x: Any) -> bool:
  return isinstance(x, Adapted)


def factor_table(config: Architecture, lora: Lora) -> dict[ParameterPath, Parameter]:
  """Every factor by its path in `Model.trained`: that of its weight, and "a" or "b". Keys are PEFT's names.

  Raises InputError for a target that is no weight of the layers (the nearest named), and for a rank above what a
  target can have.
  """
  table = {}
  for path, weight in _targets(config, lora).items():
    outputs, shape = weight.outputs, weight.layer_shape
    a_axes, b_axes = factor_axes(weight)
    for name, factor_shape, axes, initializer in (
      ("a", (lora.rank, *shape[outputs:]), a_axes, _uniform(math.prod(shape[outputs:]) ** -0.5)),
      ("b", (*shape[:outputs], lora.rank), b_axes, jax.nn.initializers.zeros),
    ):
      keys = tuple(key.replace(".weight", f".lora_{name.upper()}.weight") for key in weight.keys)
      table[(*path, name)] = Parameter((config.layers, *factor_shape), axes, initializer, keys, stacked=True)
  return table


def factor_axes(weight: Parameter) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
  """Logical names of the axes of a stacked weight's `a` and `b`."""
  layers, *axes = weight.axes
  return (layers, "rank", *axes[weight.outputs :]), (layers, *axes[: weight.outputs], "rank")


def adapt(params: dict, factors: dict, scale: float) -> dict:
  """Parameters nested like `Model.params`, the weights that have factors with these; arrays or anything else."""
  flat, leaves = traverse_util.flatten_dict(params), traverse_util.flatten_dict(factors)
  for path in dict.fromkeys(leaf[:-1] for leaf in leaves):
    weight = flat[path].weight if is_adapted(flat[path]) else flat[path]
    flat[path] = Adapted(weight, leaves[(*path, "a")], leaves[(*path, "b")], scale)
  return nested(flat)


def adapted_weights(params: dict) -> dict[ParameterPath, Adapted]:
  """The weights that have factors; {} where none has."""
  return {path: x for path, x in traverse_util.flatten_dict(params).items() if is_adapted(x)}


def _targets(config: Architecture, lora: Lora) -> dict[ParameterPath, Parameter]:
  """The weights that get factors."""
  matrices = layer_matrices(config)
  published = {path[-1]: weight.keys[0].split(".")[-2] for path, weight in matrices.items()}  # query_nhd: q_proj
  for name in lora.targets:
    if name not in published:
      meant = [ours for ours, theirs in published.items() if theirs == name]
      hint = f" (did you mean `{meant[0]}`?)" if meant else nearest(name, published)
      known = ", ".join(f"{ours} ({theirs})" for ours, theirs in published.items())
      raise InputError(f"config.student.lora.targets has {name!r}{hint}; known: {known}")
  targets = {path: weight for path, weight in matrices.items() if not lora.targets or path[-1] in lora.targets}
  for path, weight in targets.items():
    sizes = [math.prod(part) for part in (weight.layer_shape[: weight.outputs], weight.layer_shape[weight.outputs :])]
    if lora.rank > min(sizes):
      raise InputError(
        f"config.student.lora.rank is {lora.rank}: {path[-1]} is a matrix of {sizes[0]} x {sizes[1]}, so that it must "
        f"be at most {min(sizes)}"
      )
  return targets


def _uniform(limit: float) -> Callable:
  """Of PEFT: even between -limit and limit, limit = 1 / sqrt(in)."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)
