"""From the layout that trains to the layout that writes: once a step, before the first token.

In the training layout every parameter is cut over fsdp as well. A decode step there gathers the whole model to add one
token to each row; here the gathering (and the cast to the computation's dtype) is done once for all tokens of a step.

    training   embed: fsdp, heads/mlp/vocab: tensor     float32 master weights
    decoding   embed: whole, heads/mlp/vocab: tensor    bfloat16 (or what student.dtype says)
"""

import dataclasses

import jax

from opd_jax.distributed import DECODING
from opd_jax.models import Model, parameter_specs


def decode_layout(model: Model, *, bucket: int, dtype) -> Model:
  """The model in `dtype` and in the decode column of the axis table. A program of its own; its bucket is always 0."""
  del bucket  # the weights are the same for all
  model, mesh = model.astype(dtype), jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return model
  placed = jax.lax.with_sharding_constraint(model.params, parameter_specs(model, mesh, DECODING))
  return dataclasses.replace(model, params=placed)
