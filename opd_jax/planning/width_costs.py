"""What rollout and update cost at one bucket width: seconds to compile, to write, to train.

    a TPU that is not here    compiled; seconds of a step are the compiler's cycles over the clock
    simulated CPU devices     compiled and run on arrays of zeros; seconds of a step are this process's CPU-seconds

Compiling is told in CPU-seconds for both: they mean the same whatever else the machine does. A host of many cores waits
less than that for a TPU's compiler, which has several threads.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from opd_jax.config import Config
from opd_jax.distributed import make_mesh
from opd_jax.distributed.topologies import Topology
from opd_jax.errors import InputError
from opd_jax.planning.compiled import CompiledProgram, bytes_on_chip, compile_program, predict
from opd_jax.planning.footprint import refused_by_model
from opd_jax.planning.hlo import read_work
from opd_jax.programs import ProgramTable
from opd_jax.training.programs import Architectures, Program, list_programs
from opd_jax.training.step import define_programs

_REPEATS, _ENOUGH = 5, 2.0  # a measured program runs so often at most, and no more once it has taken so many seconds


@dataclasses.dataclass(frozen=True)
class WidthCost:
  """Seconds of the two programs of a rung.

  Attributes:
    width: of the bucket, in tokens.
    compile_seconds: of both programs, tracing included, in CPU-seconds of this process.
    rollout_seconds: {turns: seconds} of a rollout whose longest row has so many tokens; empty where it does not fit.
    update_seconds: None where the update does not fit the chip.
    widest_stage: every turn of `rollout_seconds` is counted at the cache's last stage, as of a conditional's branches
      the compiler's estimate takes the longest; if not, they were run, and attend what they attend.
  """

  width: int
  compile_seconds: float
  rollout_seconds: dict[int, float]
  update_seconds: float | None
  widest_stage: bool

  @property
  def fits(self) -> bool:
    return bool(self.rollout_seconds) and self.update_seconds is not None


def cost_widths(
  config: Config, models: Architectures, topology: Topology, widths: Sequence[int], say: Callable[[str], None]
) -> list[WidthCost]:
  """The costs of each of `widths`, in that order.

  Args:
    config: of the run; its horizon and its evaluation do not matter.
    topology: where the programs run.
    say: told what is being done.

  Raises InputError for simulated devices whose arrays would not fit this machine's memory.
  """
  mesh = make_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), topology.devices())
  table = ProgramTable(mesh)
  define_programs(table, config, (), models.vocab_size)  # without end-of-sequence ids every row reaches the horizon

  def compiled(program: Program) -> CompiledProgram:
    refused = refused_by_model(table, config, models, program, mesh, topology)
    return refused or compile_program(table, program, topology)

  costs = []
  for width in widths:
    say(f"rollout and update of width {width} for {topology.name}")
    programs = _programs_of(config, models, mesh, width)
    if topology.hertz is None:
      costs.append(_measured(table, programs, topology))
    else:
      costs.append(_predicted(table, programs, topology, compiled))
  return costs


def _programs_of(config: Config, models: Architectures, mesh: Mesh, width: int) -> tuple[Program, Program]:
  horizon = dataclasses.replace(config.horizon, kind="full", max=width, buckets=(width,))
  evaluation = dataclasses.replace(config.eval, path="")
  alone = dataclasses.replace(config, steps=1, horizon=horizon, eval=evaluation)
  programs = {program.name: program for program in list_programs(alone, models, mesh)}
  return programs["rollout"], programs["update"]


def _turns(width: int) -> list[int]:
  """Enough to tell what a rollout costs by the turn from what it costs once."""
  return sorted({max(1, width // 2), width})


def _predicted(
  table: ProgramTable,
  programs: tuple[Program, Program],
  topology: Topology,
  compiled: Callable[[Program], CompiledProgram],
) -> WidthCost:
  started = time.process_time()
  with ThreadPoolExecutor(max_workers=2) as threads:  # the compiler by itself keeps little more than one core busy
    rollout, update = threads.map(compiled, programs)
  compile_seconds = time.process_time() - started
  wrote = {}
  if not rollout.too_large:
    text = table.compile(programs[0].name, programs[0].bucket, *programs[0].arguments).as_text()
    for turns in _turns(programs[0].bucket):
      seconds = predict(read_work(text, open_trips=turns), topology)
      wrote |= {turns: seconds} if seconds else {}
  return WidthCost(programs[0].bucket, compile_seconds, wrote, update.predicted_seconds, True)


def _measured(table: ProgramTable, programs: tuple[Program, Program], topology: Topology) -> WidthCost:
  rollout, update = programs
  held = sum(bytes_on_chip(program.arguments) for program in programs) * topology.chips
  if held > 0.5 * topology.hbm_bytes * topology.chips:
    raise InputError(
      f"--topology={topology.name}: the programs of width {rollout.bucket} would be run here to be measured, and hold "
      f"{held / 2**30:.0f} GiB: take a smaller model, or a TPU topology, whose seconds the compiler predicts"
    )
  started = time.process_time()
  write, learn = (table.compile(program.name, program.bucket, *program.arguments) for program in programs)
  compile_seconds = time.process_time() - started

  student, prompts_bp, prompt_mask_bp, _, *numbers = _zeros(rollout.arguments)

  def generate(turns: int) -> None:
    jax.block_until_ready(write(student, prompts_bp, prompt_mask_bp, np.int32(turns), *numbers))

  wrote = {turns: _least_seconds(generate, turns) for turns in _turns(rollout.bucket)}
  state, teacher, batch = _zeros(update.arguments)

  def train() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(learn(state, teacher, batch))  # the old state is used up

  return WidthCost(rollout.bucket, compile_seconds, wrote, _least_seconds(train), False)


def _least_seconds(run: Callable[..., None], *arguments: Any) -> float:
  """CPU-seconds of the fastest of several runs; the first, which touches fresh memory, does not count."""
  run(*arguments)
  least, taken, runs = math.inf, 0.0, 0
  while runs < _REPEATS and taken < _ENOUGH:
    started = time.process_time()
    run(*arguments)
    seconds = time.process_time() - started
    least, taken, runs = min(least, seconds), taken + seconds, runs + 1
  return least


def _zeros(tree: Any) -> Any:
  """Arrays for abstract ones: zeros, and true in masks. Numbers without a place stay on the host."""

  def fill(x: jax.ShapeDtypeStruct) -> Any:
    full = np.ones if x.dtype == jnp.bool_ else np.zeros
    host = full(x.shape, x.dtype)
    return host if x.sharding is None else jax.device_put(host, x.sharding)

  return jax.tree.map(fill, tree)
