"""A run, opened: everything that its steps need and that does not change while it goes on.

The order matters. What can be wrong is looked at first, cheapest first, and all of it before a weight is read or a
program compiled: mesh, workdir, paths, tokenizers, prompts. Only then is the embedded task trained, where it is asked
for and not there yet.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from opd_jax import arithmetic, models
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data import PromptSet, PromptStream, RoutedStream, list_parts, locate, read_mixture
from opd_jax.distributed import make_mesh
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import Evaluator, make_evaluator
from opd_jax.evaluation.evaluator import define_programs as define_evaluation
from opd_jax.evaluation.questions import Source, best_label, list_sources
from opd_jax.horizon import Horizon
from opd_jax.objectives import ENTROPY, OWN_TOKENS, REFERENCE, make_terms, make_token_weights
from opd_jax.pair import Pair, open_pair
from opd_jax.programs import ProgramTable
from opd_jax.telemetry.rows import read_rows
from opd_jax.telemetry.workdir import check_folder, read_config
from opd_jax.training.canary import define_programs as define_canary
from opd_jax.training.programs import Architectures
from opd_jax.training.step import define_programs

# What may differ when a workdir is used again: how long to run, what to watch, and on how many devices.
_FREE = (
  "steps",
  "mesh.",
  "checkpoint.",
  "eval.",
  "log.",
  "debug.",
  "horizon.compile_ahead",
  "optimizer.skips",
  "teacher.canary_every",
)


@dataclasses.dataclass(frozen=True)
class Taught:
  """A teacher as a run knows it before it is read: its path, and what the student and it share."""

  path: str
  pair: Pair


@dataclasses.dataclass(frozen=True)
class OpenRun:
  """Everything about a run that its steps do not change.

  Attributes:
    config, workdir: as given.
    mesh: of all models.
    pair: what student and teacher share; of several teachers, the first.
    student_path, teacher_path: folders or hub ids, embedded names resolved; of several teachers, the first's.
    reference_path: likewise; "" where there is none.
    prompts: to train on.
    stream: the order in which they are taken.
    evaluator: None without an evaluation set.
    horizon: the schedule.
    table: of the run's programs.
    routes: name -> teacher, under `teacher.routes`; None where there is one for all rows.
  """

  config: Config
  workdir: Path
  mesh: Mesh
  pair: Pair
  student_path: str
  teacher_path: str
  reference_path: str
  prompts: PromptSet
  stream: PromptStream | RoutedStream
  evaluator: Evaluator | None
  horizon: Horizon
  table: ProgramTable
  routes: Mapping[str, Taught] | None = None

  @property
  def teachers(self) -> Mapping[str, Taught]:
    """name -> teacher; the only one is called ""."""
    return self.routes or {"": Taught(self.teacher_path, self.pair)}


def open_run(config: Config, workdir: str | os.PathLike, devices: Sequence[jax.Device] | None = None) -> OpenRun:
  """Checks all input, reads tokenizers and prompts, and makes the embedded models where they are asked for.

  `devices`: those of the mesh; None: all there are.

  Raises InputError; nothing in the workdir has been touched then.
  """
  check_folder(workdir)
  c, workdir = config, Path(workdir)
  mesh = make_mesh((c.mesh.data, c.mesh.fsdp, c.mesh.tensor), devices)
  check_rows(c, mesh)
  check_workdir(c, workdir)
  check_objective(c)
  best_label(c.eval)  # is there such a mark?
  parts = list_parts(c.data)
  for part in parts:
    check_exists("data.mixture" if c.data.mixture else "data.path", part.path)
  sources = find_sources(c)
  given = c.student.path, c.teacher_path, c.reference.path
  model_paths = tuple(map(arithmetic.outline, given))
  pair = open_pair(*model_paths, own_template=bool(c.data.teacher_template))
  check_heads(Architectures(pair.student, pair.teacher, pair.reference), mesh)
  routes = _open_routes(c, model_paths[0]) if c.teacher.routes else None
  if c.student.lora.rank:
    models.factor_table(pair.student, c.student.lora)  # are there such weights?
  prompts, counts = read_mixture(
    [dataclasses.replace(part, path=arithmetic.outline(part.path)) for part in parts],
    tokenizer=pair.tokenizer,
    max_prompt=c.rollout.max_prompt,
    stop_ids=pair.eos_ids if c.objective.dataset_share else (),
    teacher_tokenizer=pair.teacher_tokenizer if c.data.teacher_template else None,
    max_teacher=c.teacher_prompt,
    routes=tuple(routes or ()),
  )
  stream = _make_stream(c, prompts, counts, [part.weight for part in parts], routes)
  table = ProgramTable(mesh)
  masked = (
    pair.tokenizer.single_ids(texts, f"config.objective.{field}")
    for field, texts in (("mask_first", c.objective.mask_first), ("mask_all", c.objective.mask_all))
  )
  define_programs(table, c, pair.eos_ids, pair.vocab_size, make_token_weights(c, *masked))
  define_evaluation(table, c, pair.eos_ids, pair.vocab_size)
  define_canary(table, pair.vocab_size)
  evaluator = make_evaluator(c, table, mesh, pair.tokenizer, sources) if sources else None
  for path in filter(None, (*given, *c.teachers.values())):
    if arithmetic.is_embedded(path):
      arithmetic.make(path)
    else:
      models.check(path)
  return OpenRun(c, workdir, mesh, pair, *model_paths, prompts, stream, evaluator, c.horizon.build(), table, routes)


def _open_routes(config: Config, student_path: str) -> dict[str, Taught]:
  """The teachers of `teacher.routes`. Raises InputError where one does not go with the student, or with the others."""
  routes = {}
  for name, given in config.teachers.items():
    path = arithmetic.outline(given)
    routes[name] = Taught(path, open_pair(student_path, path))
  check_alike({name: taught.pair.teacher for name, taught in routes.items()})
  return routes


def _make_stream(
  config: Config,
  prompts: PromptSet,
  counts: Sequence[int],
  weights: Sequence[float],
  routes: Mapping[str, Taught] | None,
) -> PromptStream | RoutedStream:
  if routes is None:
    return PromptStream(counts, weights, config.seed)
  for name in routes:
    if name not in prompts.routes:
      raise InputError(
        f"config.teacher.routes has {name}, and no prompt that is short enough names it in "
        f"`{config.data.teacher_field}`: leave it out"
      )
  return RoutedStream(prompts.routes, counts, weights, config.seed, config.rollout.prompts_per_step)


def open_model(
  config: Config, path: str, devices: Sequence[jax.Device] | None = None
) -> tuple[Evaluator, models.Model]:
  """A model that belongs to no run, in the student's dtype, and who marks it on the config's sets.

  Args:
    config: with an evaluation set; of its models and of its training nothing is read.
    path: folder, hub id, or `arithmetic:...`.
    devices: those of the mesh; None: all there are.

  Raises InputError.
  """
  c, mesh = config, make_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), devices)
  check_split({"eval.batch": c.eval.batch}, mesh)
  sources = find_sources(c)
  real = arithmetic.outline(path)
  pair = open_pair(real, real)
  check_heads(Architectures(pair.student, pair.teacher), mesh)
  table = ProgramTable(mesh)
  define_programs(table, c, pair.eos_ids, pair.vocab_size)  # for the decode layout
  define_evaluation(table, c, pair.eos_ids, pair.vocab_size)
  evaluator = make_evaluator(c, table, mesh, pair.tokenizer, sources)
  return evaluator, models.load(arithmetic.make(path), dtype=jnp.dtype(c.student.dtype), mesh=mesh)


def find_sources(config: Config) -> tuple[Source, ...]:
  """The config's evaluation sets with their real paths. Raises InputError as `list_sources` does, and for a path where
  there is nothing."""
  sources = list_sources(config.eval)
  for source in sources:
    check_exists(source.config_field, source.path)
  return tuple(dataclasses.replace(source, path=arithmetic.outline(source.path)) for source in sources)


def check_exists(field: str, path: str) -> None:
  """Raises InputError where there is no data file or folder, and the path is not of the embedded task."""
  if arithmetic.is_embedded(path):
    return
  try:
    locate(path)
  except InputError as error:
    raise InputError(f"config.{field}: {error}") from error


def check_objective(config: Config) -> None:
  """Raises InputError where an objective's terms need what the run does not give them, or are given what none reads."""
  c = config.objective
  needs = frozenset().union(*(term.needs for _, term in make_terms(c)))
  if REFERENCE in needs and not config.reference.path:
    raise InputError(f"config.objective.kind={c.kind!r} compares with a third model: give config.reference.path")
  if config.reference.path and REFERENCE not in needs:
    raise InputError(
      f"config.reference.path is {config.reference.path!r}, and config.objective.kind={c.kind!r} reads no reference: "
      "leave it empty, or take extrapolated"
    )
  if c.dataset_share and OWN_TOKENS in needs:
    raise InputError(
      f"config.objective.dataset_share is {c.dataset_share}, and config.objective.kind={c.kind!r} has a sampled "
      "estimator, which needs the student's own tokens: take 0, or a divergence of whole distributions"
    )
  if c.dataset_share and c.select_by == ENTROPY:
    raise InputError(
      f"config.objective.dataset_share is {c.dataset_share}, and config.objective.select_by={ENTROPY!r} knows the "
      "entropy of tokens that the student wrote alone: take 0, or select_by='divergence'"
    )
  if config.horizon.kind == "change_point" and (c.select_by or c.dataset_share):
    field = "select_by" if c.select_by else "dataset_share"
    raise InputError(
      f"config.objective.{field} is {getattr(c, field)!r}, and config.horizon.kind='change_point' reads what the "
      "student wrote token by token from its start: take one of the two"
    )


def check_rows(config: Config, mesh: Mesh | AbstractMesh) -> None:
  """Rows are split over data and fsdp: what is split must divide."""
  rows = {
    "rollout.prompts_per_step": config.rollout.prompts_per_step,
    "rows of a micro-batch": config.rows // config.optimizer.micro_batches,
    "eval.batch": config.eval.batch,
  }
  check_split(rows, mesh)


def check_split(rows: dict[str, int], mesh: Mesh | AbstractMesh) -> None:
  """Raises InputError where one of the named numbers of rows does not divide over data and fsdp."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  for name, count in rows.items():
    if count % parts:
      raise InputError(
        f"{name} is {count}, which does not divide over mesh.data x mesh.fsdp = {parts}: make it a multiple of {parts}"
      )


def check_heads(models: Architectures, mesh: Mesh | AbstractMesh) -> None:
  """Raises InputError where query heads do not split over the mesh's `tensor` axis."""
  for role, architecture in models.by_role.items():
    if architecture.heads % mesh.shape["tensor"]:
      raise InputError(
        f"the {role} has {architecture.heads} query heads, which do not split over mesh.tensor={mesh.shape['tensor']}: "
        f"make it a divisor of {math.gcd(*(model.heads for model in models.by_role.values()))}"
      )


def check_alike(teachers: Mapping[str, models.Architecture]) -> None:
  """Raises InputError where one of several teachers is of another architecture than the first: one program scores with
  any of them."""
  (first, expected), *others = teachers.items()
  for name, architecture in others:
    if architecture.computation != expected.computation:
      raise InputError(
        f"config.teacher.routes: {name} is of another architecture than {first}: the teachers of a run must share one"
      )


def check_workdir(config: Config, workdir: Path) -> None:
  """Raises InputError for the workdir of another run, and for one whose checkpoints are gone."""
  checkpoints = workdir / "checkpoints"
  if checkpoints.exists() and not checkpoints.is_dir():
    raise InputError(f"{checkpoints} is a file: move it away, or choose another --workdir")
  if not checkpoints.exists() and read_rows(workdir / "metrics.jsonl"):
    raise InputError(
      f"{workdir} has rows of a run in metrics.jsonl and no folder {checkpoints.name} to go on from: put that back, or "
      "choose another --workdir (a run that begins again here would drop the rows)"
    )
  old = read_config(workdir)
  if not old:
    return
  changed = configs.changed_fields(old, config)
  refused = [name for name in changed if not name.startswith(_FREE)]
  if "steps" in changed and config.optimizer.schedule != "constant":
    refused.append("steps (the learning rate's schedule depends on it)")
  if refused:
    raise InputError(
      f"the workdir {workdir} belongs to a run of another config (it differs in {', '.join(refused)}): choose another "
      "--workdir, or the old values"
    )
