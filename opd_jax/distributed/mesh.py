"""The mesh that student and teacher share: axes data, fsdp, tensor, outermost slowest.

    two slices of 16 chips, data=2, fsdp=-1      data 0: slice 0, fsdp 0 .. 15
                                                 data 1: slice 1, fsdp 0 .. 15

Between slices there is only the data-centre network, so they are told apart by `data`, over which nothing but
gradients travels.
"""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from opd_jax.distributed import axes
from opd_jax.distributed.axes import MESH_AXES
from opd_jax.errors import InputError


def mesh_shape(sizes: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
  """`sizes` of (data, fsdp, tensor) with one -1 filled in so that they multiply to `devices`.

  Raises InputError where they cannot.
  """
  named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
  if any(size == 0 or size < -1 for size in sizes) or sum(size == -1 for size in sizes) > 1:
    raise InputError(f"{named}: each must be a positive number, and at most one may be -1 (the rest)")
  known = math.prod(size for size in sizes if size != -1)
  filled = tuple(devices // known if size == -1 else size for size in sizes)
  if math.prod(filled) != devices:
    raise InputError(
      f"{named} does not multiply to the {devices} device(s) at hand: set one of them to -1, or start "
      f"{known} device(s) (on CPU: XLA_FLAGS=--xla_force_host_platform_device_count={known})"
    )
  return filled


def make_mesh(sizes: tuple[int, int, int] = (1, -1, 1), devices=None) -> Mesh:
  """A mesh of Auto axes over `devices` (default: all), from sizes of (data, fsdp, tensor).

  Raises InputError where the sizes do not multiply to the devices, or `data` does not tell their slices apart.
  """
  try:
    devices = list(jax.devices() if devices is None else devices)
  except (
    RuntimeError,
    AssertionError,
  ) as error:  # JAX_PLATFORMS names what is not here
    reason = next(iter(str(error).splitlines()), "JAX_PLATFORMS names none that is here")
    raise InputError(f"jax finds no devices: {reason}") from error
  if not devices:
    raise InputError("the list of devices is empty: leave it out for all there are")
  data, *rest = mesh_shape(sizes, len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if data % slices:
    raise InputError(f"mesh.data={data} does not divide over {slices} slices: make it a multiple of {slices}")
  # A physical axis of a torus may be split (16 chips as fsdp 4 x tensor 4): correct anywhere, and the only way there.
  if slices > 1:
    within, between = (data // slices, *rest), (slices, 1, 1)
    arranged = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
  else:
    arranged = mesh_utils.create_device_mesh((data, *rest), devices, allow_split_physical_axes=True)
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_of(arrays) -> Mesh | None:
  """The mesh that a pytree of arrays lives on; None where its first array is not sharded over one."""
  sharding = getattr(jax.tree.leaves(arrays)[0], "sharding", None)
  return sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None


def place_rows(mesh: Mesh, arrays):
  """Host arrays whose first axis is the rows of a batch, put on the mesh row-sharded.

  Every process holds the whole batch (it is a pure function of config and step) and feeds the rows of its own devices.
  """

  def place(x):
    placement = axes.sharding(mesh, ("batch", *(None,) * (x.ndim - 1)), x.shape)
    return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])

  return jax.tree.map(place, arrays)
