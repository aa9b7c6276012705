"""From the names of an array's axes to the axes of the mesh: the one table that every sharding follows.

A parameter or an activation says what its axes *are* ("vocab", "heads", ...); this table says where they *go*. Two
columns: `TRAINING` splits parameters over `fsdp` and `tensor`; `DECODING` leaves `embed` whole, because a decode step
that gathers its weights at every token moves the whole model for one token of work.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axes
TRAINING = {
  "batch": ("data", "fsdp"),  # rows of a batch
  "length": (),  # positions of a row
  "layers": (),  # the stacked, scanned axis
  "vocab": ("tensor",),
  "embed": ("fsdp",),  # the width of a *parameter*; activations leave theirs unnamed
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "head_dim": (),
  "mlp": ("tensor",),
  "rank": (),  # of a LoRA's factors
}
DECODING = {**TRAINING, "embed": ()}


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh, table=TRAINING) -> PartitionSpec:
  """The PartitionSpec of an array of `shape` whose axes are named `axes` (None: unsharded).

  An axis that its mesh axes do not divide is replicated (key-value heads fewer than `tensor`, for one).
  Raises KeyError for a name outside the table, ValueError when two axes of an array claim one mesh axis.
  """
  entries, taken = [], set()
  for name, size in zip(axes, shape, strict=True):
    wanted = () if name is None else table[name]
    wanted = tuple(axis for axis in wanted if mesh.shape[axis] > 1)
    if not wanted or size % math.prod(mesh.shape[axis] for axis in wanted):
      entries.append(None)
      continue
    if taken & set(wanted):
      raise ValueError(f"axes {axes} put two dimensions of one array on mesh axis {sorted(taken & set(wanted))}")
    taken |= set(wanted)
    entries.append(wanted if len(wanted) > 1 else wanted[0])
  return PartitionSpec(*entries)


def sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], table=TRAINING) -> NamedSharding:
  """The NamedSharding of an array of `shape` whose axes are named `axes`."""
  return NamedSharding(mesh, partition_spec(axes, shape, mesh, table))


def parts(axis: str, size: int) -> int:
  """Into how many pieces the mesh of `jax.set_mesh` cuts an axis of an activation with so many entries."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  return size // NamedSharding(mesh, partition_spec((axis,), (size,), mesh)).shard_shape((size,))[0]


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins an activation inside a jitted function to the table's sharding; nothing where no mesh is set.

  Works on the mesh of `jax.set_mesh`, so a model never sees a platform or a device count.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))
