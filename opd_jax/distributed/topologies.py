"""Machines that are not here: the devices of a TPU topology, or simulated CPU devices, to compile for.

    v5e:4x4      16 chips of one v5e slice           generation:AxB, or AxBxC where the torus has three axes
    v5p:4x4x8    128 chips ("v5p-256" counts cores)
    cpu:8        8 simulated devices of this machine

libtpu compiles for any TPU topology on a machine without one. Its settings are environment variables that it reads
when it is loaded, so they are set here, before the first device is asked for.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from opd_jax.errors import InputError, nearest

_GiB = 2**30


@dataclasses.dataclass(frozen=True)
class _Generation:
  """A kind of chip.

  Attributes:
    hbm_bytes: of one device, as far as libtpu lets a program use it ("exceeds available HBM (15.75G)").
    hertz: clock of the matrix units, from published bf16 peaks: v5e 197 TFLOP/s = 4 units x 128 x 128 x 2 x 1.5 GHz;
      v5p 459 = 8 x 128 x 128 x 2 x 1.75; v6e 918 = 4 x 256 x 256 x 2 x 1.75.
    bandwidth: of its memory, bytes a second, published.
    shapes: slices to choose from, ascending in chips.
  """

  hbm_bytes: int
  hertz: float
  bandwidth: float
  shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
_GENERATIONS = {
  "v5e": _Generation(int(15.75 * _GiB), 1.5e9, 0.82e12, _FLAT),
  "v5p": _Generation(int(95.74 * _GiB), 1.75e9, 2.77e12, _CUBES),
  "v6e": _Generation(int(31.25 * _GiB), 1.75e9, 1.64e12, _FLAT),
}
_CPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)

# For silence and for several processes at once; none has to match the topology.
_LIBTPU_SETTINGS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """The devices of a machine that need not be here.

  Attributes:
    name: as on the command line.
    slices: of which it has so many, joined by the data-centre network.
    hbm_bytes: memory of one device that a program may use. Simulated devices share the memory of this machine.
    hertz: clock of its matrix units; None for a CPU.
    bandwidth: bytes a second of its memory; None for a CPU.
  """

  name: str
  slices: int
  hbm_bytes: int
  hertz: float | None
  bandwidth: float | None

  @property
  def chips(self) -> int:
    """Devices of all slices."""
    _, shape = _parsed(self.name)
    return math.prod(shape) * self.slices

  def devices(self) -> Sequence[jax.Device]:
    """Devices to compile for. Raises InputError without libtpu, or where libtpu refuses the shape."""
    generation, shape = _parsed(self.name)
    if generation == "cpu":
      return _simulated(self.chips)
    if importlib.util.find_spec("libtpu") is None:
      raise InputError(
        f"--topology={self.name} needs libtpu, the TPU compiler, which runs on any Linux machine: "
        "pip install -r requirements-tpu.txt (or compile for simulated devices: --topology=cpu:8)"
      )
    os.environ.update(_LIBTPU_SETTINGS)
    # A host of several chips is libtpu's default; fewer chips than that are one host.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(shape) == 1 else {}
    try:
      description = _described(self.name, self.slices, tuple(bounds.items()))
    except jax.errors.JaxRuntimeError as error:
      known = ", ".join(_GENERATIONS[generation].shapes)
      reason = str(error).splitlines()[0]
      raise InputError(f"--topology={self.name}: libtpu refuses it ({reason}); choose from {known}") from error
    return description.devices

  def larger(self) -> list["Topology"]:
    """Topologies of the same kind with more chips, ascending."""
    generation, _ = _parsed(self.name)
    names = (
      [f"cpu:{count}" for count in _CPU_COUNTS]
      if generation == "cpu"
      else [f"{generation}:{shape}" for shape in _GENERATIONS[generation].shapes]
    )
    return [other for other in (find_topology(name, self.slices) for name in names) if other.chips > self.chips]


@functools.cache
def _described(name: str, slices: int, settings: tuple[tuple[str, Any], ...]):
  """libtpu's description; one, so that meshes made of it twice are equal."""
  return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices, **dict(settings))


def find_topology(name: str, slices: int = 1) -> Topology:
  """The topology called `name`, without loading anything. Raises InputError for an unknown one, nearest named."""
  generation, shape = _parsed(name)
  if slices < 1:
    raise InputError(f"--slices={slices}: it must be at least 1")
  if generation == "cpu":
    if slices > 1:
      raise InputError(f"--slices={slices}: simulated devices have no slices; give --topology=cpu:{shape[0] * slices}")
    return Topology(name, 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // shape[0], None, None)
  known = _GENERATIONS[generation]
  return Topology(name, slices, known.hbm_bytes, known.hertz, known.bandwidth)


def use_cpu(name: str) -> None:
  """Keeps jax off real accelerators and gives it the devices that `name` may need; before jax's first device."""
  generation, shape = _parsed(name)
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  if generation == "cpu":
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={shape[0]}".strip()


def _parsed(name: str) -> tuple[str, tuple[int, ...]]:
  """("v5e", (4, 4)) of "v5e:4x4"; InputError names the nearest known topology."""
  match = re.fullmatch(r"(\w+):(\d{1,5}(?:x\d{1,5})*)", name)
  generation, shape = (match[1], tuple(int(n) for n in match[2].split("x"))) if match else (name, ())
  axes = 1 if generation == "cpu" else 0
  if generation in _GENERATIONS:
    axes = _GENERATIONS[generation].shapes[0].count("x") + 1
  if not match or len(shape) != axes or math.prod(shape) < 1:
    known = [f"{kind}:{size}" for kind, about in _GENERATIONS.items() for size in about.shapes]
    known += [f"cpu:{count}" for count in _CPU_COUNTS]
    raise InputError(
      f"--topology={name} is unknown{nearest(name, known)}; known: v5e:AxB and v6e:AxB (up to 16x16), v5p:AxBxC "
      "(chips, not cores: v5p-256 is v5p:4x4x8), cpu:N"
    )
  return generation, shape


def _simulated(count: int) -> list[jax.Device]:
  devices = jax.devices("cpu")
  if len(devices) < count:
    raise InputError(
      f"--topology=cpu:{count}: jax started with {len(devices)} simulated device(s); "
      f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
    )
  return devices[:count]
