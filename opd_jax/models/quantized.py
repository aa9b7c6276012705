"""Weights of the layers in int8: half of bfloat16's bytes, for a model that is read and not trained.

Of every matrix product in the scanned layers, the weights become integers of -128 .. 127 with one scale for each output
channel, w ≈ q * scale (qwix, symmetric, round to nearest); embedding, head, norms and biases stay as they are.
`forward` makes a layer's weights from them inside its scan, so that one layer at a time exists in full:

    query_nhd  [L, N, H, D]  ->  qvalue int8 [L, N, H, D], scale float32 [L, N, H, 1]
    output_dnh [L, D, N, H]  ->  qvalue int8 [L, D, N, H], scale float32 [L, D, 1, 1]

The values do not depend on the mesh: the largest weight of a channel is exact however the channel is split.
"""

import dataclasses

import jax
import jax.numpy as jnp
import qwix
from flax import traverse_util
from jax.sharding import NamedSharding

from opd_jax.distributed import TRAINING, mesh_of, partition_spec
from opd_jax.models.decoder import Model
from opd_jax.models.lora import factor_axes, is_adapted
from opd_jax.models.parameters import Parameter, layer_matrices, nested, parameter_table


def quantize(model: Model) -> Model:
  """The model with its layers' weights in int8. Can be used inside jit; `model` stays as it is."""
  params = traverse_util.flatten_dict(model.params)
  for path, parameter in layer_matrices(model.config).items():
    params[path] = _to_int8(params[path], _channel_axes(parameter))
  return dataclasses.replace(model, params=nested(params))


def quantize_and_free(model: Model) -> Model:
  """The same, one parameter after the other on the devices, each freed once it has its int8. Uses up `model`.

  Shardings follow the training column of the axis table.
  """
  params, mesh = traverse_util.flatten_dict(model.params), mesh_of(model.params)
  for path, parameter in layer_matrices(model.config).items():
    full, axes = params[path], _channel_axes(parameter)
    shapes = jax.eval_shape(lambda w, axes=axes: _to_int8(w, axes), full)
    placed = mesh and jax.tree.map(lambda x, p=parameter: NamedSharding(mesh, _spec(p, x, mesh, TRAINING)), shapes)
    params[path] = jax.block_until_ready(jax.jit(_to_int8, static_argnums=1, out_shardings=placed)(full, axes))
    full.delete()
  return dataclasses.replace(model, params=nested(params))


def parameter_specs(model: Model, mesh, table: dict = TRAINING) -> dict:
  """Like `model.params`: a PartitionSpec for every array, in int8 or not, with factors or not. A scale's axes of size 1
  are not split.

  Args:
    model: arrays or anything with their shapes.
    mesh: concrete or abstract.
    table: the column of `distributed.axes`.
  """
  params = traverse_util.flatten_dict(model.params)
  return nested(
    {path: _specs(parameter, params[path], mesh, table) for path, parameter in parameter_table(model.config).items()}
  )


def _specs(parameter: Parameter, stored, mesh, table: dict):
  """Of what stands in a parameter's place."""
  if is_adapted(stored):
    a_axes, b_axes = factor_axes(parameter)
    return dataclasses.replace(
      stored,
      weight=_spec(parameter, stored.weight, mesh, table),
      a=partition_spec(a_axes, stored.a.shape, mesh, table),
      b=partition_spec(b_axes, stored.b.shape, mesh, table),
    )
  return jax.tree.map(lambda x: _spec(parameter, x, mesh, table), stored)


def _spec(parameter: Parameter, x, mesh, table: dict):
  return partition_spec(parameter.axes, x.shape, mesh, table)


def _channel_axes(parameter: Parameter) -> tuple[int, ...]:
  """Axes of the array over which its output channels run, the layers first."""
  return tuple(range(1 + parameter.outputs))


def _to_int8(w: jax.Array, channel_axes: tuple[int, ...]) -> qwix.QArray:
  # In float32: a quotient of bfloat16 numbers is off by up to a quarter of a step before it is rounded.
  return qwix.quantize(w.astype(jnp.float32), jnp.int8, channelwise_axes=channel_axes)
