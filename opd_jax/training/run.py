"""A run, opened: everything that its steps need and that does not change while it goes on.

The order matters. What can be wrong is looked at first, cheapest first, and all of it before a weight is read or a
program compiled: mesh, workdir, paths, tokenizers, prompts. Only then is the embedded task trained, where it is asked
for and not there yet.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, Mesh

from opd_jax import arithmetic, models
from opd_jax import config as configs
from opd_jax.config import Config
from opd_jax.data import PromptSet, read_prompts
from opd_jax.distributed import make_mesh
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import Evaluator
from opd_jax.evaluation.evaluator import define_programs as define_evaluation
from opd_jax.evaluation.graders import check_kind
from opd_jax.horizon import Horizon
from opd_jax.objectives import ENTROPY, OWN_TOKENS, REFERENCE, make_terms, make_token_weights
from opd_jax.pair import Pair, open_pair
from opd_jax.programs import ProgramTable
from opd_jax.telemetry.workdir import read_config
from opd_jax.training.programs import Architectures
from opd_jax.training.step import define_programs

# What may differ when a workdir is used again: how long to run, what to watch, and on how many devices.
_FREE = ("steps", "mesh.", "checkpoint.", "eval.", "log.", "debug.", "horizon.compile_ahead")


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything about a run that its steps do not change.

  Attributes:
    config, workdir: as given.
    mesh: of all models.
    pair: what student and teacher share.
    student_path, teacher_path: folders or hub ids, embedded names resolved.
    reference_path: likewise; "" where there is none.
    prompts: to train on.
    evaluator: None without an evaluation set.
    horizon: the schedule.
    table: of the run's programs.
  """

  config: Config
  workdir: Path
  mesh: Mesh
  pair: Pair
  student_path: str
  teacher_path: str
  reference_path: str
  prompts: PromptSet
  evaluator: Evaluator | None
  horizon: Horizon
  table: ProgramTable


def open_run(config: Config, workdir: str | os.PathLike, devices: Sequence[jax.Device] | None = None) -> Run:
  """Checks all input, reads tokenizers and prompts, and makes the embedded models where they are asked for.

  `devices`: those of the mesh; None: all there are.

  Raises InputError; nothing in the workdir has been touched then.
  """
  c, workdir = config, Path(workdir)
  mesh = make_mesh((c.mesh.data, c.mesh.fsdp, c.mesh.tensor), devices)
  check_rows(c, mesh)
  _check_workdir(c, workdir)
  check_objective(c)
  if c.eval.path:
    check_kind(c.eval.grader)
  for field, path in (("data.path", c.data.path), ("eval.path", c.eval.path)):
    if path and not arithmetic.is_embedded(path) and not os.path.exists(path.partition(":")[0]):
      raise InputError(f"config.{field}: {path} does not exist")
  given = c.student.path, c.teacher_path, c.reference.path
  model_paths = tuple(map(arithmetic.outline, given))
  data_path, eval_path = map(arithmetic.outline, (c.data.path, c.eval.path))
  pair = open_pair(*model_paths)
  check_heads(Architectures(pair.student, pair.teacher, pair.reference), mesh)
  read = {"tokenizer": pair.tokenizer, "max_prompt": c.rollout.max_prompt, "chat": c.data.chat}
  prompts = read_prompts(
    data_path,
    prompt_field=c.data.prompt_field,
    answer_field=c.data.answer_field,
    limit=c.data.limit,
    stop_ids=pair.eos_ids if c.objective.dataset_share else (),
    teacher_field=c.data.teacher_prompt_field,
    max_teacher=c.teacher_prompt,
    **read,
  )
  table = ProgramTable(mesh)
  masked = (
    pair.tokenizer.single_ids(texts, f"config.objective.{field}")
    for field, texts in (("mask_first", c.objective.mask_first), ("mask_all", c.objective.mask_all))
  )
  define_programs(table, c, pair.eos_ids, pair.vocab_size, make_token_weights(c, *masked))
  define_evaluation(table, c, pair.eos_ids, pair.vocab_size)
  evaluator = None
  if eval_path:
    questions = read_prompts(
      eval_path, prompt_field=c.eval.prompt_field, answer_field=c.eval.answer_field, limit=c.eval.prompts, **read
    )
    evaluator = Evaluator(c, table, mesh, pair.tokenizer, questions, Path(eval_path.partition(":")[0]).stem)
  for path in filter(None, given):
    if arithmetic.is_embedded(path):
      arithmetic.make(path)
    else:
      models.check(path)
  return Run(c, workdir, mesh, pair, *model_paths, prompts, evaluator, c.horizon.build(), table)


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


def check_rows(config: Config, mesh: Mesh | AbstractMesh) -> None:
  """Rows are split over data and fsdp: what is split must divide."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = {
    "rollout.prompts_per_step": config.rollout.prompts_per_step,
    "rows of a micro-batch": config.rows // config.optimizer.micro_batches,
    "eval.batch": config.eval.batch,
  }
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


def _check_workdir(config: Config, workdir: Path) -> None:
  """Refuses the workdir of another run."""
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f"--workdir={workdir} is a file: give a folder")
  old = read_config(workdir)
  if not old:
    return
  old = configs.to_dict(configs.from_config_dict(old, check=False))  # fields that came later have their defaults
  changed = configs.differences(old, configs.to_dict(config))
  refused = [name for name in changed if not name.startswith(_FREE)]
  if "steps" in changed and config.optimizer.schedule != "constant":
    refused.append("steps (the learning rate's schedule depends on it)")
  if refused:
    raise InputError(
      f"--workdir={workdir} belongs to a run of another config (it differs in {', '.join(refused)}): choose another "
      "--workdir, or the old values"
    )
