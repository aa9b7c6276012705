"""One program, compiled for devices that need not be here, and what it needs: the row of the plan's table."""

import dataclasses
import math
import re
import time

import jax
from jax.extend.core import jaxprs_in_params

from opd_jax.distributed.topologies import Topology
from opd_jax.planning.hlo import Work, read_work
from opd_jax.programs import ProgramTable
from opd_jax.training.programs import Program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = re.compile(r"(?:Used |\()([\d.]+)([KMGT]?)(?:\) exceeds| of )")


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
  """What one program needs of each chip.

  Attributes:
    program: what was compiled.
    compile_seconds: tracing, lowering and compiling; None where it was not compiled.
    argument_bytes: of its arguments; most of them (weights, optimizer) live on the chip all through the run.
    batch_bytes: of those arguments that do not: prompts, rollout.
    temp_bytes: beyond its arguments: temporaries, results that take no argument's place, code. Where the compiler
      gave up for lack of memory, what it says was needed; where it was not asked, what the memory model says.
    flops: multiply-adds of its matrix products x 2, a chip's share of the whole mesh's.
    work: collectives and cycles; None without an executable.
    predicted_seconds: by `predict`; None where the compiler estimates nothing.
    too_large: for a chip, so that there is no executable.
  """

  program: Program
  compile_seconds: float | None
  argument_bytes: int
  batch_bytes: int
  temp_bytes: int
  flops: float
  work: Work | None
  predicted_seconds: float | None
  too_large: bool


def compile_program(table: ProgramTable, program: Program, topology: Topology) -> CompiledProgram:
  """Compiles `program` for the table's mesh. A program too large for its chip is a result, not an error."""
  chips = topology.chips
  argument_bytes = bytes_on_chip(program.arguments)
  batch_bytes = bytes_on_chip(program.batch)
  traced = table.trace(program.name, program.bucket, *program.arguments)
  flops = matmul_flops(traced.jaxpr.jaxpr, program.bucket) / chips
  started = time.perf_counter()
  try:
    compiled = table.compile(program.name, program.bucket, *program.arguments)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    # Whatever the message says, it is more than the chip has.
    needed = max(_needed(str(error)), topology.hbm_bytes + 1)
    refused = refused_program(table, program, chips, needed - argument_bytes)
    return dataclasses.replace(refused, compile_seconds=time.perf_counter() - started)
  seconds = time.perf_counter() - started
  memory = compiled.memory_analysis()
  work = read_work(compiled.as_text(), open_trips=program.bucket)
  return CompiledProgram(
    program=program,
    compile_seconds=seconds,
    argument_bytes=argument_bytes,
    batch_bytes=batch_bytes,
    temp_bytes=(
      memory.temp_size_in_bytes
      + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
      + memory.generated_code_size_in_bytes
    ),
    flops=flops,
    work=work,
    predicted_seconds=predict(work, topology),
    too_large=False,
  )


def predict(work: Work, topology: Topology) -> float | None:
  """Seconds: cycles over the clock, and what kernels move over the memory's bandwidth; no communication, no stalls.

  None where the compiler estimates no cycles, as on a CPU.
  """
  if not work.cycles or topology.hertz is None:
    return None
  return work.cycles / topology.hertz + work.kernel_bytes / topology.bandwidth


def refused_program(table: ProgramTable, program: Program, chips: int, temp_bytes: int) -> CompiledProgram:
  """The row of a program so much too large by the memory model that a compiler would search long for nothing."""
  traced = table.trace(program.name, program.bucket, *program.arguments)
  return CompiledProgram(
    program=program,
    compile_seconds=None,
    argument_bytes=bytes_on_chip(program.arguments),
    batch_bytes=bytes_on_chip(program.batch),
    temp_bytes=temp_bytes,
    flops=matmul_flops(traced.jaxpr.jaxpr, program.bucket) / chips,
    work=None,
    predicted_seconds=None,
    too_large=True,
  )


def bytes_on_chip(tree) -> int:
  """Bytes of one device's shards of a tree of abstract arrays."""
  return sum(
    math.prod(x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def matmul_flops(jaxpr, open_trips: int) -> float:
  """Floating-point operations of a jaxpr's matrix products, loops unrolled, on the arrays of all devices.

  Of a conditional's branches the one of most operations counts: of a decode step's stages, the widest.

  Args:
    jaxpr: of a traced function.
    open_trips: turns of a `while` (its limit is traced; a `scan` knows its own length).
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contract, _), _ = equation.params["dimension_numbers"]
      width = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
      total += 2.0 * width * math.prod(equation.outvars[0].aval.shape)
    times = {"scan": equation.params.get("length", 1), "while": open_trips}.get(equation.primitive.name, 1)
    if equation.primitive.name == "shard_map":  # its body sees one device's shards
      times = equation.params["mesh"].size
    inner = [matmul_flops(inner, open_trips) for inner in jaxprs_in_params(equation.params)]
    total += times * (max(inner) if equation.primitive.name == "cond" else sum(inner))
  return total


def _needed(message: str) -> int:
  """Bytes that the compiler says a program that did not fit would have needed."""
  found = [float(number) * _UNITS[unit] for number, unit in _NEEDED.findall(message)]
  return int(max(found, default=0))
