"""From the layout that trains to the layout that writes: once a step, before the first token.

In the training layout every parameter is cut over fsdp as well. A decode step there gathers the whole model to add one
token to each row; here the gathering (and the cast to the computation's dtype) is done once for all tokens of a step.

    training   embed: fsdp, heads/mlp/vocab: tensor     float32 master weights, or frozen ones and LoRA's factors
    decoding   embed: whole, heads/mlp/vocab: tensor    bfloat16 (or what student.dtype says); the layers maybe in int8
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.distributed import DECODING, TRAINING
from opd_jax.models import Model, parameter_specs, quantize


def decode_layout(model: Model, *, bucket: int, dtype, int8: bool = False) -> Model:
  """The model in `dtype` and in the decode column of the axis table. A program of its own; its bucket is always 0.

  Args:
    model: in the training layout; its layers' weights may be in int8 already, and stay so, or have factors, which are
      merged into them.
    bucket: of the program table.
    dtype: of the computation.
    int8: the layers' weights become int8 with a scale for each output channel, rounded from `model` as it comes. Every
      device rounds its own part, so that what is gathered is int8; the values do not depend on the mesh.
  """
  del bucket  # the weights are the same for all
  mesh = jax.sharding.get_abstract_mesh()
  whole = model.merged(jnp.float32 if int8 else dtype)
  made = int8 or whole is not model
  model = (quantize(whole) if int8 else whole).astype(dtype)
  if mesh.empty or mesh.size == 1:
    return model
  params = model.params
  if made:  # held where what they are made of is, or the partitioner may gather that and round or add afterwards
    params = jax.lax.with_sharding_constraint(params, parameter_specs(model, mesh, TRAINING))
  params = jax.lax.with_sharding_constraint(params, parameter_specs(model, mesh, DECODING))
  return dataclasses.replace(model, params=params)
