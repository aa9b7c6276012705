"""The table of parameters, read back from the declarations in `layers`; what to make and where to put it.

A parameter of the scanned layers has a leading [L] axis here and one checkpoint tensor per layer:

    ("layers", "mlp", "gate_fd")  [L, F, D]   <->   model.layers.{0..L-1}.mlp.gate_proj.weight  [F, D]
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx, traverse_util
from jax.sharding import NamedSharding

from opd_jax.distributed import TRAINING, partition_spec, sharding
from opd_jax.models.architecture import Architecture
from opd_jax.models.layers import Decoder

ParameterPath = tuple[str, ...]


@dataclass(frozen=True)
class Parameter:
  """One array of the model and the checkpoint tensors it is made of.

  Attributes:
    shape: of the array in the model; a stacked parameter has the layers first.
    axes: logical name of every axis, as in `distributed.axes`.
    initializer: (key, shape, dtype) -> array; every layer is drawn alike.
    keys: the checkpoint tensors: one per layer where `stacked`, otherwise one.
    stacked: whether axis 0 of `shape` runs over `keys`.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  initializer: Callable
  keys: tuple[str, ...]
  stacked: bool

  @property
  def layer_shape(self) -> tuple[int, ...]:
    """Shape of what one checkpoint tensor holds, with the head axes cut apart."""
    return self.shape[1:] if self.stacked else self.shape

  @property
  def head_axis(self) -> int | None:
    """Axis of `layer_shape` that the checkpoint holds merged with the one after it, [.., N, H, ..] as [.., N*H, ..]."""
    axes = self.axes[1:] if self.stacked else self.axes
    return next((i for i, axis in enumerate(axes) if axis in ("heads", "kv_heads")), None)

  @property
  def outputs(self) -> int:
    """Of a matrix: how many first axes of `layer_shape` its output channels run over; the others are summed over in its
    product. A checkpoint keeps [out, in]."""
    return 2 if self.head_axis == 0 else 1

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """Shape of one tensor in the checkpoint."""
    shape, i = self.layer_shape, self.head_axis
    return shape if i is None else (*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :])


@functools.lru_cache(maxsize=64)
def graph(config: Architecture) -> tuple[nnx.GraphDef, nnx.State]:
  """The decoder's structure and its abstract state, split once per architecture."""
  return nnx.split(Decoder(config))


def parameter_table(config: Architecture) -> dict[ParameterPath, Parameter]:
  """Every parameter of the decoder by its path in `Model.params`."""
  table = {}
  for path, declared in nnx.to_flat_state(graph(config)[1]):
    shape, key, stacked = tuple(declared.get_value().shape), declared.key, path[0] == "layers"
    table[path] = Parameter(
      shape=(config.layers, *shape) if stacked else shape,
      axes=("layers", *declared.axes) if stacked else declared.axes,
      initializer=declared.initializer,
      keys=tuple(f"model.layers.{layer}.{key}" for layer in range(config.layers)) if stacked else (key,),
      stacked=stacked,
    )
  return table


def layer_matrices(config: Architecture) -> dict[ParameterPath, Parameter]:
  """The weights of the layers' matrix products."""
  return {
    path: parameter
    for path, parameter in parameter_table(config).items()
    if parameter.stacked and parameter.keys[0].endswith(".weight") and len(parameter.layer_shape) > 1
  }


def nested(by_path: dict[ParameterPath, object]) -> dict:
  """{("layers", "mlp", "gate_fd"): x} as {"layers": {"mlp": {"gate_fd": x}}}."""
  return traverse_util.unflatten_dict(by_path)


def shardings(config: Architecture, mesh: jax.sharding.Mesh | None) -> dict[ParameterPath, NamedSharding | None]:
  """Where every parameter lives: the axis table's sharding on `mesh`; None, without a mesh, for the default device."""
  return _places(parameter_table(config), mesh)


def specs(config: Architecture, mesh, table: dict = TRAINING) -> dict:
  """Nested like `Model.params`: a PartitionSpec for every parameter, on a concrete or an abstract mesh."""
  return nested({path: partition_spec(p.axes, p.shape, mesh, table) for path, p in parameter_table(config).items()})


def random_parameters(
  table: dict[ParameterPath, Parameter], key: jax.Array, dtype, mesh: jax.sharding.Mesh | None
) -> dict:
  """A nested dict of freshly drawn arrays, each made where it lives. The values do not depend on the mesh."""

  def draw(key: jax.Array) -> dict:
    keys = jax.random.split(key, len(table))
    drawn = {path: p.initializer(keys[i], p.shape, dtype) for i, (path, p) in enumerate(sorted(table.items()))}
    return nested(drawn)

  return jax.jit(draw, out_shardings=nested(_places(table, mesh)))(key)


def _places(
  table: dict[ParameterPath, Parameter], mesh: jax.sharding.Mesh | None
) -> dict[ParameterPath, NamedSharding | None]:
  return {path: mesh and sharding(mesh, parameter.axes, parameter.shape) for path, parameter in table.items()}
