"""What to change so that a run fits, cheapest for its result first, found without compiling.

    1. same chips, same numbers     eval.batch, optimizer.micro_batches, student.remat, mesh.tensor
    2. more chips                   the smallest larger topology of the kind, with 1. where it helps
    3. fewer prompts a step         changes the run: the largest number that fits

A candidate's temporaries are the model's (`footprint`), scaled by what the compiler said of the same program before.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

from jax.sharding import AbstractMesh

from opd_jax.config import Config
from opd_jax.distributed.topologies import Topology
from opd_jax.errors import InputError
from opd_jax.planning.compiled import CompiledProgram, bytes_on_chip
from opd_jax.planning.footprint import model_temporaries, queued_bytes, resident
from opd_jax.planning.subject import abstract_mesh, check_mesh
from opd_jax.training.programs import Architectures, Program, list_programs

_MARGIN = 0.97  # of a chip's memory: the model is rough, and a candidate that just misses costs a compile
_MOST = 64  # how many times the prompts of the config the search for room goes up to


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A run that should fit: its config, and the machine to run it on."""

  config: Config
  topology: Topology

  def changes(self, config: Config, topology: Topology) -> list[str]:
    """The flags that lead there from another run."""
    flags = [f"--topology={self.topology.name}"] if self.topology != topology else []
    for section, field in (
      ("mesh", "tensor"),
      ("eval", "batch"),
      ("student", "remat"),
      ("optimizer", "micro_batches"),
      ("rollout", "prompts_per_step"),
    ):
      old, new = (getattr(getattr(c, section), field) for c in (config, self.config))
      if old != new:
        flags.append(f"--config.{section}.{field}={str(new).lower()}")
    return flags


@dataclasses.dataclass(frozen=True)
class Search:
  """Candidates around a run that was compiled, or was tried.

  Attributes:
    models: of the run.
    scale: (program, bucket) -> factor of the model's row-dependent share; programs that were not compiled take 1.
  """

  models: Architectures
  scale: dict[tuple[str, int], float]

  @classmethod
  def calibrated(
    cls, models: Architectures, config: Config, mesh: AbstractMesh, compiled: list[CompiledProgram]
  ) -> "Search":
    """From what the compiler said of some programs of `config`."""
    scale = {
      _key(row.program): model_temporaries(config, models, row.program, mesh).scale(row.temp_bytes)
      for row in compiled
      if row.temp_bytes and row.compile_seconds is not None
    }
    return cls(models, scale)

  def mend(self, config: Config, topology: Topology) -> Candidate | None:
    """The first candidate that should fit and changes nothing of the run's result; None where there is none."""
    for machine in (topology, *topology.larger()):
      for changed in self._layouts(config, machine):
        mended = self._mend_here(changed, machine)
        if mended and (mended, machine) != (config, topology):
          return Candidate(mended, machine)
    return None

  def largest_batch(self, config: Config, topology: Topology) -> Candidate | None:
    """The most prompts a step that should fit on the same machine with the same layout; None where not even one."""
    try:
      mesh = abstract_mesh(config, topology.chips)
    except InputError:
      return None
    parts, micro = _parts(mesh), config.optimizer.micro_batches
    samples = config.rollout.samples_per_prompt
    # The smallest step of prompts whose rows, cut into micro-batches, still divide over the mesh.
    unit = math.lcm(parts, micro * parts // math.gcd(micro * parts, samples))

    def fits(units: int) -> Config | None:
      rollout = dataclasses.replace(config.rollout, prompts_per_step=units * unit)
      return self._mend_here(dataclasses.replace(config, rollout=rollout), topology)

    most = max(1, config.rollout.prompts_per_step * _MOST // unit)
    units = _last(fits, most)
    return Candidate(fits(units), topology) if units else None

  def peak(self, config: Config, topology: Topology) -> float:
    """Bytes of one chip that the run should take at most."""
    mesh = abstract_mesh(config, topology.chips)
    programs = list_programs(config, self.models, mesh)
    return resident(config, self.models, mesh).total + max(self._passing(config, p, mesh) for p in programs)

  def _layouts(self, config: Config, topology: Topology) -> Iterator[Config]:
    """The config as it is, then with more of the mesh in `tensor`, as far as heads and chips go."""
    yield config
    heads = math.gcd(*(model.heads for model in self.models.by_role.values()))
    for tensor in (2, 4, 8, 16):
      if tensor > config.mesh.tensor and heads % tensor == 0 and -1 in (config.mesh.data, config.mesh.fsdp):
        yield dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, tensor=tensor))

  def _mend_here(self, config: Config, topology: Topology) -> Config | None:
    """The config with the smallest changes of evaluation batch, micro-batches and remat that should fit here."""
    try:
      mesh = abstract_mesh(config, topology.chips)
    except InputError:
      return None
    room = _MARGIN * topology.hbm_bytes - resident(config, self.models, mesh).total

    def fits(config: Config, wanted: Callable[[Program], bool]) -> bool:
      try:
        check_mesh(config, self.models, mesh)
      except InputError:
        return False
      programs = filter(wanted, list_programs(config, self.models, mesh))
      return all(self._passing(config, program, mesh) <= room for program in programs)

    def evaluates(program: Program) -> bool:
      return program.name.startswith("evaluate")

    def updates(program: Program) -> bool:
      return program.trains

    for changed in self._evaluation_batches(config, mesh):
      if not fits(changed, lambda program: not updates(program)):
        continue  # the rollout is looked at with it: no batch of evaluation helps where it does not fit
      return next((last for last in self._updates(changed, mesh) if fits(last, updates)), None)
    return None

  def _evaluation_batches(self, config: Config, mesh: AbstractMesh) -> Iterator[Config]:
    """As it is, then smaller by halves, down to a row a chip."""
    yield config
    batch = config.eval.batch // 2
    while config.eval.has_sets and batch >= _parts(mesh):
      yield dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch=batch))
      batch //= 2

  def _updates(self, config: Config, mesh: AbstractMesh) -> Iterator[Config]:
    """As it is, then in more parts; then with remat, which costs a third more arithmetic, and so again."""
    most = max(1, config.rows // _parts(mesh))
    for remat in (False, True) if not config.student.remat else (True,):
      for parts in range(config.optimizer.micro_batches, most + 1):
        if most % parts == 0 or parts == config.optimizer.micro_batches:
          student = dataclasses.replace(config.student, remat=remat)
          optimizer = dataclasses.replace(config.optimizer, micro_batches=parts)
          yield dataclasses.replace(config, student=student, optimizer=optimizer)

  def _passing(self, config: Config, program: Program, mesh: AbstractMesh) -> float:
    """Bytes of one chip that a program should take while it runs."""
    modelled = model_temporaries(config, self.models, program, mesh)
    held = bytes_on_chip(program.batch) + queued_bytes(config, self.models, program, mesh)
    return held + modelled.fixed + self.scale.get(_key(program), 1.0) * modelled.rows


def _key(program: Program) -> tuple[str, int]:
  return program.label, program.bucket


def _parts(mesh: AbstractMesh) -> int:
  return mesh.shape["data"] * mesh.shape["fsdp"]


def _last(holds: Callable[[int], object], most: int) -> int:
  """The largest n in 1..most for which `holds`, which once it fails fails for good; 0 where it never holds."""
  low, high = 0, most + 1
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if holds(middle) else (low, middle)
  return low
