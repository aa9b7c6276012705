"""The plan of a run on a machine: its programs compiled, their bytes against the chip's, and what to change."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from opd_jax.config import Config
from opd_jax.distributed import make_mesh
from opd_jax.distributed.topologies import Topology
from opd_jax.planning.compiled import CompiledProgram, compile_program
from opd_jax.planning.footprint import Footprint, footprint, refused_by_model
from opd_jax.planning.search import Candidate, Search
from opd_jax.planning.subject import abstract_mesh, check_mesh, make_table, read_architectures
from opd_jax.training.programs import Architectures, list_programs

_TRIES = 3  # candidates that are compiled at most before the plan gives up on mending


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether a run fits a machine.

  Attributes:
    topology: the machine.
    programs: every program of the run, compiled.
    memory: of one chip by role, at the peak.
    advice: how much room there is, or what to change.
  """

  topology: Topology
  programs: list[CompiledProgram]
  memory: Footprint
  advice: str

  @property
  def fits(self) -> bool:
    return _fits(self.programs, self.memory, self.topology)

  def to_json(self) -> dict[str, Any]:
    """Plain values; None where the compiler gave none."""
    return {
      "topology": self.topology.name,
      "chips": self.topology.chips,
      "hbm_bytes_per_chip": self.topology.hbm_bytes,
      "programs": [
        {
          "name": row.program.label,
          "bucket": row.program.bucket,
          "compile_seconds": row.compile_seconds,
          "argument_bytes": row.argument_bytes,
          "temp_bytes": row.temp_bytes,
          "flops": row.flops,
          "collectives": row.work.collectives if row.work else None,
          "predicted_seconds": row.predicted_seconds,
        }
        for row in self.programs
      ],
      "memory_bytes_per_chip": dataclasses.asdict(self.memory),
      "fits": self.fits,
      "advice": self.advice,
    }

  def show(self, console: Console) -> None:
    """Two tables and the verdict."""
    table = Table(title=f"{self.topology.name}, {self.topology.chips} chips: what each program needs of a chip")
    table.add_column("program", no_wrap=True)
    for name in ("bucket", "compile s", "arguments", "temporaries", "TFLOP", "predicted s"):
      table.add_column(name, justify="right", no_wrap=name != "predicted s")
    for row in self.programs:
      table.add_row(
        row.program.label,
        str(row.program.bucket),
        "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
        _size(row.argument_bytes),
        _size(row.temp_bytes) + (" (too much)" if row.too_large else ""),
        f"{row.flops / 1e12:.3g}",
        "-" if row.predicted_seconds is None else f"{row.predicted_seconds:.3g}",
      )
    console.print(table)
    for row in self.programs:
      console.print(f"{row.program.label} {row.program.bucket}: {_collectives(row)}", soft_wrap=True, highlight=False)
    memory = Table(title="memory of a chip at its peak")
    roles = dataclasses.asdict(self.memory) | {"sum": self.memory.total, "has": self.topology.hbm_bytes}
    for role in roles:
      memory.add_column(role, justify="right")
    memory.add_row(*map(_size, roles.values()))
    console.print(memory)
    if any(row.predicted_seconds for row in self.programs):
      console.print("predicted s: the compiler's estimate of cycles; communication and stalls come on top", style="dim")
    console.print("fits" if self.fits else "does not fit", style="bold green" if self.fits else "bold red")
    console.print(self.advice, soft_wrap=True, highlight=False)


def make_plan(config: Config, topology: Topology, say: Callable[[str], None]) -> Verdict:
  """Compiles every program of a run for a machine that need not be here, and looks for a way where it does not fit.

  Args:
    config: of the run; of its models only config.json is read.
    topology: the machine.
    say: told what is being compiled.

  Raises InputError for what `train` would refuse on that machine, and without the compiler for it.
  """
  models = read_architectures(config)
  check_mesh(config, models, abstract_mesh(config, topology.chips))
  programs = _compiled(config, models, topology, say)
  mesh = abstract_mesh(config, topology.chips)
  memory = footprint(config, models, mesh, programs)
  search = Search.calibrated(models, config, mesh, programs)
  if _fits(programs, memory, topology):
    advice = _room(search, config, topology)
  else:
    advice = _mending(search, config, models, topology, programs, say)
  return Verdict(topology, programs, memory, advice)


def _compiled(
  config: Config,
  models: Architectures,
  topology: Topology,
  say: Callable[[str], None],
  known: Sequence[CompiledProgram] = (),
) -> list[CompiledProgram]:
  """The programs of a run, compiled; those of `known` that are the same are taken over."""
  mesh = make_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), topology.devices())
  table, rows = make_table(config, models, mesh), []
  for program in list_programs(config, models, mesh):
    same = [row for row in known if row.program == program]
    if same:
      rows += same
    elif refused := refused_by_model(table, config, models, program, mesh, topology):
      rows.append(refused)
    else:
      say(f"compiling {program.label} at bucket {program.bucket} for {topology.name}")
      rows.append(compile_program(table, program, topology))
  return rows


def _fits(programs: list[CompiledProgram], memory: Footprint, topology: Topology) -> bool:
  return memory.total <= topology.hbm_bytes and not any(row.too_large for row in programs)


def _room(search: Search, config: Config, topology: Topology) -> str:
  """How much larger the step could be, by the model."""
  largest = search.largest_batch(config, topology)
  if largest is None or largest.config.rollout.prompts_per_step <= config.rollout.prompts_per_step:
    return "It fits, and by the memory model this is the largest batch that does."
  flags = " ".join(largest.changes(config, topology))
  return f"It fits. By the memory model there is room up to {flags} (not compiled)."


def _mending(
  search: Search,
  config: Config,
  models: Architectures,
  topology: Topology,
  programs: list[CompiledProgram],
  say: Callable[[str], None],
) -> str:
  """The first candidate that fits when compiled; each that does not corrects the model for the next."""
  candidate = None
  for _ in range(_TRIES):
    candidate = search.mend(config, topology) or search.largest_batch(config, topology)
    if candidate is None:
      return _hopeless(search, config, topology)
    flags = " ".join(candidate.changes(config, topology))
    say(f"trying {flags}")
    update_changed = candidate.config.optimizer != config.optimizer or candidate.config.student != config.student
    known = [row for row in programs if not row.program.trains or not update_changed]
    rows = _compiled(candidate.config, models, candidate.topology, say, known)
    mesh = abstract_mesh(candidate.config, candidate.topology.chips)
    memory = footprint(candidate.config, models, mesh, rows)
    if _fits(rows, memory, candidate.topology):
      return _mended(candidate, flags, memory)
    search = Search(models, search.scale | Search.calibrated(models, candidate.config, mesh, rows).scale)
  return f"The nearest candidate was {' '.join(candidate.changes(config, topology))}, and it does not fit either."


def _mended(candidate: Candidate, flags: str, memory: Footprint) -> str:
  where = "the smallest topology of its kind that fits" if "--topology" in flags else "on the same chips"
  if "prompts_per_step" in flags:
    where = "the largest batch that fits the same chips"
  taken = f"{_size(memory.total)} of {_size(candidate.topology.hbm_bytes)} a chip"
  return f"Use {flags} ({where}; compiled: {taken})."


def _hopeless(search: Search, config: Config, topology: Topology) -> str:
  needed = _size(search.peak(config, topology))
  return (
    f"It needs about {needed} of {_size(topology.hbm_bytes)} a chip, and neither a larger topology of this "
    "kind nor one row a chip helps: shorten the horizon, or take smaller models."
  )


def _collectives(row: CompiledProgram) -> str:
  if row.work is None:
    return "no executable: " + ("by the memory model" if row.compile_seconds is None else "the compiler gave up")
  moved = row.work.collective_bytes
  parts = (f"{kind} {count} ({_size(moved.get(kind, 0))})" for kind, count in row.work.collectives.items())
  return ", ".join(parts) or "no collectives"


def _size(count: float) -> str:
  """Bytes for a reader."""
  unit = max(0, min(3, (int(count).bit_length() - 1) // 10))
  return f"{count / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
