"""What a plan knows of a run: the architectures of its models and the sizes of its mesh, checked as `train` would.

Of a model only config.json is read: from its folder, or from those that come with opd_jax.
"""

import os
import re
from pathlib import Path

from jax.sharding import AbstractMesh, AxisType, Mesh

from opd_jax import arithmetic
from opd_jax.config import Config
from opd_jax.distributed.axes import MESH_AXES
from opd_jax.distributed.mesh import mesh_shape
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import define_programs as define_evaluation
from opd_jax.models import Architecture, factor_table, read_architecture
from opd_jax.programs import ProgramTable
from opd_jax.shipped import CONFIGS
from opd_jax.training.canary import define_programs as define_canary
from opd_jax.training.programs import Architectures
from opd_jax.training.run import check_alike, check_heads, check_objective, check_rows
from opd_jax.training.step import define_programs

_SHIPPED = CONFIGS / "models"


def read_architectures(config: Config) -> Architectures:
  """From the config.json of each model alone: no weights, no tokenizer. Raises InputError, also for an objective that
  lacks a model or is given one too many, for a LoRA that does not fit the student, and for teachers that are not
  alike."""
  check_objective(config)
  paths = config.student.path, config.teacher_path, config.reference.path  # of several teachers, which are alike, one
  architectures = Architectures(*(_architecture(path) for path in paths if path))
  check_alike({name: _architecture(path) for name, path in config.teachers.items()})
  if config.student.lora.rank:
    factor_table(architectures.student, config.student.lora)  # are there such weights?
  return architectures


def abstract_mesh(config: Config, chips: int) -> AbstractMesh:
  """The run's mesh on `chips` devices that do not exist. Raises InputError where its sizes do not multiply to them."""
  sizes = mesh_shape((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), chips)
  return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_mesh(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> None:
  """Raises InputError where rows do not divide over the mesh, or query heads over its `tensor` axis."""
  check_rows(config, mesh)
  check_heads(models, mesh)


def make_table(config: Config, models: Architectures, mesh: Mesh) -> ProgramTable:
  """The run's own program table. End-of-sequence ids change no shape; any will do."""
  table = ProgramTable(mesh)
  define_programs(table, config, (0,), models.vocab_size)
  define_evaluation(table, config, (0,), models.vocab_size)
  define_canary(table, models.vocab_size)
  return table


def _architecture(path: str) -> Architecture:
  folder = Path(os.path.expanduser(arithmetic.outline(path)))
  if os.path.isdir(folder):
    return read_architecture(folder)
  name = re.sub(r"@.*", "", path).rpartition("/")[2]
  if "/" in path and (_SHIPPED / name / "config.json").is_file():
    return read_architecture(_SHIPPED / name)
  shipped = ", ".join(sorted(entry.name for entry in _SHIPPED.glob("*/"))) or "none here"
  raise InputError(
    f"{path}: no such folder, and no model whose config.json comes with opd_jax ({shipped}): pass a folder that holds "
    "its config.json (nothing else is needed to plan)"
  )
