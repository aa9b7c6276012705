"""The programs of a run with abstract arguments: everything that `train` would compile, and not one array.

    rollout, update      at every bucket that the horizon schedule reaches
    evaluate_greedy/...  at the full horizon, for the student, and for the teacher where the run starts with its marks

A mesh of devices gives arguments to compile for; an AbstractMesh, which has sizes and no devices, gives their bytes.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from opd_jax import arithmetic
from opd_jax.config import Config
from opd_jax.distributed import sharding
from opd_jax.distributed.axes import MESH_AXES
from opd_jax.distributed.mesh import mesh_shape
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import define_programs as define_evaluation
from opd_jax.models import Architecture, Model, parameter_table, read_architecture
from opd_jax.models.parameters import nested
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Rollout
from opd_jax.training.run import check_rows
from opd_jax.training.state import TrainState, abstract_state, make_optimizer
from opd_jax.training.step import define_programs

_SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "models"


@dataclasses.dataclass(frozen=True)
class Architectures:
  """The two models of a run as far as config.json tells.

  Attributes:
    student, teacher: their architectures.
    vocab_size: ids that both heads have; their tokenizers, which are not read here, may have fewer.
  """

  student: Architecture
  teacher: Architecture

  @property
  def vocab_size(self) -> int:
    return min(self.student.vocab_size, self.teacher.vocab_size)


@dataclasses.dataclass(frozen=True)
class Program:
  """One entry of the program table, about to be compiled.

  Attributes:
    name: in the table.
    model: whose architecture its cache has: "student" or "teacher".
    bucket: new tokens.
    rows: completions of one call.
    arguments: abstract, with shardings.
  """

  name: str
  model: str
  bucket: int
  rows: int
  arguments: tuple[Any, ...]

  @property
  def label(self) -> str:
    """The name, told apart from its twin for the other model."""
    return f"{self.name} (teacher)" if self.model == "teacher" else self.name

  @property
  def batch(self) -> tuple[Any, ...]:
    """The arguments that come and go with a step; those before them live on the chip all through the run."""
    return self.arguments[1:] if self.generates else self.arguments[2:]

  @property
  def generates(self) -> bool:
    return self.name != "update"


def read_architectures(config: Config) -> Architectures:
  """From the config.json of both models alone: no weights, no tokenizer. Raises InputError."""
  return Architectures(_architecture(config.student.path), _architecture(config.teacher.path))


def abstract_mesh(config: Config, chips: int) -> AbstractMesh:
  """The run's mesh on `chips` devices that do not exist. Raises InputError where its sizes do not multiply to them."""
  sizes = mesh_shape((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), chips)
  return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_mesh(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> None:
  """Raises InputError where rows do not divide over the mesh, or query heads over its `tensor` axis."""
  check_rows(config, mesh)
  for role, architecture in (("student", models.student), ("teacher", models.teacher)):
    if architecture.heads % mesh.shape["tensor"]:
      raise InputError(
        f"the {role} has {architecture.heads} query heads, which do not split over mesh.tensor={mesh.shape['tensor']}: "
        f"make it a divisor of {math.gcd(models.student.heads, models.teacher.heads)}"
      )


def abstract_models(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> tuple[TrainState, Model]:
  """The student's whole training state and the teacher, as they live on the mesh all through a run."""
  state = abstract_state(models.student, make_optimizer(config), mesh)
  dtype = jnp.dtype(config.teacher.dtype)
  params = {
    path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=sharding(mesh, p.axes, p.shape))
    for path, p in parameter_table(models.teacher).items()
  }
  return state, Model(nested(params), models.teacher)


def list_programs(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> list[Program]:
  """Every program of the run, in the order in which a run would first need them."""
  state, teacher = abstract_models(config, models, mesh)
  P = config.rollout.max_prompt

  def array(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    axes = ("batch", *(None,) * (len(shape) - 1)) if shape else ()
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, axes, shape) if shape else None)

  def sampling(name: str, role: str, model: Model, bucket: int, prompts: int, samples: int) -> Program:
    numbers = (array((), jnp.int32), array((), jnp.uint32), array((), jnp.uint32))  # horizon, seed, step
    batch = (array((prompts, P), jnp.int32), array((prompts, P), jnp.bool_), *numbers)
    rows = prompts * samples
    return Program(name, role, bucket, rows, (model, *batch, array((rows,), jnp.uint32)))

  listed, c = [], config.eval
  settings = [("evaluate_greedy", 1)] * c.greedy + [("evaluate_sampled", c.samples)] * bool(c.samples)
  for name, samples in settings if c.path else ():
    if c.baseline:
      listed.append(sampling(name, "teacher", teacher, config.horizon.max, c.batch, samples))
    listed.append(sampling(name, "student", state.student, config.horizon.max, c.batch, samples))
  R = config.rows
  for bucket in sorted({config.bucket(H) for H in config.horizon.build().distinct(config.steps)}):
    prompts, samples = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    listed.append(sampling("rollout", "student", state.student, bucket, prompts, samples))
    rollout = Rollout(
      tokens_bs=array((R, P + bucket), jnp.int32),
      prompt_mask_bp=array((R, P), jnp.bool_),
      completion_mask_bs=array((R, bucket), jnp.bool_),
      truncated_b=array((R,), jnp.bool_),
      behaviour_logprob_bs=array((R, bucket), jnp.float32),
    )
    listed.append(Program("update", "student", bucket, R, (state, teacher, rollout)))
  return listed


def make_table(config: Config, models: Architectures, mesh: Mesh) -> ProgramTable:
  """The run's own program table. End-of-sequence ids change no shape; any will do."""
  table = ProgramTable(mesh)
  define_programs(table, config, (0,), models.vocab_size)
  define_evaluation(table, config, (0,), models.vocab_size)
  return table


def _architecture(path: str) -> Architecture:
  folder = Path(arithmetic.outline(path)).expanduser()
  if folder.is_dir():
    return read_architecture(folder)
  name = re.sub(r"@.*", "", path).rpartition("/")[2]
  if "/" in path and (_SHIPPED / name / "config.json").is_file():
    return read_architecture(_SHIPPED / name)
  shipped = ", ".join(sorted(entry.name for entry in _SHIPPED.glob("*/"))) or "none here"
  raise InputError(
    f"{path}: no such folder, and no model whose config.json comes with opd_jax ({shipped}): pass a folder that holds "
    "its config.json (nothing else is needed to plan)"
  )
