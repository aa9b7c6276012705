"""The programs of a run with abstract arguments: everything that it will compile, and not one array.

    canary               of teacher and student, unless `teacher.ema` moves the teacher
    decode_layout        of the student, and of a teacher of its own where the run starts with its marks; bucket 0
    evaluate_layout      of the same models for their marks, where `rollout.int8` gives decode_layout to rollouts alone
    evaluate_greedy/...  at the full horizon, for the same models
    token_kl             of the student's logged answers and the teacher
    rollout, update      at every bucket that the horizon schedule reaches
    probe                in the place of update where a step compares gradients

A mesh of devices gives arguments to compile for; an AbstractMesh, which has sizes and no devices, gives their bytes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from opd_jax.config import STUDENT, Config
from opd_jax.distributed import DECODING, TRAINING, sharding
from opd_jax.evaluation import token_kl
from opd_jax.evaluation.evaluator import layout_program
from opd_jax.horizon import bucket_for
from opd_jax.models import Architecture, Model, parameter_specs, parameter_table, quantize
from opd_jax.models.parameters import nested
from opd_jax.objectives import ENTROPY
from opd_jax.rollout import Rollout
from opd_jax.training.batch import Answers, Batch, Prompts
from opd_jax.training.canary import ROWS, columns
from opd_jax.training.state import Frozen, TrainState, abstract_state, make_optimizer


@dataclasses.dataclass(frozen=True)
class Architectures:
  """The models of a run as far as config.json tells.

  Attributes:
    student, teacher: their architectures.
    reference: None where there is none.
    vocab_size: ids that all heads have; their tokenizers, which are not read here, may have fewer.
  """

  student: Architecture
  teacher: Architecture
  reference: Architecture | None = None

  @property
  def by_role(self) -> dict[str, Architecture]:
    """Those that there are."""
    return {role: model for role, model in vars(self).items() if model}

  @property
  def vocab_size(self) -> int:
    return min(model.vocab_size for model in self.by_role.values())


# How many of a program's first arguments stay on the devices all through the run. Those that generate have none: their
# weights are laid out anew.
_RESIDENT = {"decode_layout": 1, "evaluate_layout": 1, "canary": 1, "token_kl": 2, "update": 2, "probe": 2}


@dataclasses.dataclass(frozen=True)
class Program:
  """One entry of the program table, about to be compiled.

  Attributes:
    name: in the table.
    model: "student" or "teacher": who is resharded, who generates, who is read; the student in an update.
    bucket: new tokens; of a canary, those of an answer.
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
    """The arguments that come and go, weights in decode layout among them; the others stay all through the run."""
    return self.arguments[_RESIDENT.get(self.name, 0) :]

  @property
  def lays_out(self) -> bool:
    return self.name in ("decode_layout", "evaluate_layout")

  @property
  def trains(self) -> bool:
    return self.name in ("update", "probe")

  @property
  def generates(self) -> bool:
    return self.name not in _RESIDENT


def abstract_models(config: Config, models: Architectures, mesh: Mesh | AbstractMesh) -> tuple[TrainState, Frozen]:
  """The whole training state and the models beside it, as they live on the mesh all through a run; of several teachers,
  which are alike, one."""
  follows, c = config.teacher.ema > 0, config.teacher
  state = abstract_state(models.student, make_optimizer(config), mesh, follows, config.student)
  teacher = None if follows else abstract_model(models.teacher, c.dtype, mesh, TRAINING, int8=c.int8)
  reference = models.reference and abstract_model(models.reference, config.reference.dtype, mesh, TRAINING)
  return state, Frozen(teacher, reference)


def abstract_model(
  architecture: Architecture, dtype: str, mesh: Mesh | AbstractMesh, layout: dict, *, int8: bool = False
) -> Model:
  """A model's shapes, dtypes and shardings by a column of the axis table; `int8`: its layers' weights quantized."""
  table = parameter_table(architecture)
  shapes = nested({path: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype)) for path, p in table.items()})
  model = Model(shapes, architecture)
  if int8:
    model = jax.eval_shape(quantize, model)
  params = jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
    model.params,
    parameter_specs(model, mesh, layout),
  )
  return Model(params, architecture)


def list_programs(
  config: Config,
  models: Architectures,
  mesh: Mesh | AbstractMesh,
  first_step: int = 0,
  horizon_state: Any = None,
) -> list[Program]:
  """Every program of the run from `first_step` on, in the order in which it is first needed.

  `horizon_state`: of an adaptive horizon before that step; None is that of a run that begins.
  """
  state, frozen = abstract_models(config, models, mesh)
  P = config.rollout.max_prompt

  def array(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    axes = ("batch", *(None,) * (len(shape) - 1)) if shape else ()
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(mesh, axes, shape) if shape else None)

  def sampling(name: str, role: str, bucket: int, prompts: int, samples: int) -> Program:
    int8 = config.rollout.int8 if name == "rollout" else role == "teacher" and config.teacher.int8
    model = abstract_model(getattr(models, role), config.student.dtype, mesh, DECODING, int8=int8)
    numbers = (array((), jnp.int32), array((), jnp.uint32), array((), jnp.uint32))  # horizon, seed, step
    batch = (array((prompts, P), jnp.int32), array((prompts, P), jnp.bool_), *numbers)
    rows = prompts * samples
    return Program(name, role, bucket, rows, (model, *batch, array((rows,), jnp.uint32)))

  def steps_at(name: str, bucket: int) -> list[Program]:
    R, samples = config.rows, config.rollout.samples_per_prompt
    rollout = Rollout(
      tokens_bs=array((R, P + bucket), jnp.int32),
      prompt_mask_bp=array((R, P), jnp.bool_),
      completion_mask_bs=array((R, bucket), jnp.bool_),
      truncated_b=array((R,), jnp.bool_),
      behaviour_logprob_bs=array((R, bucket), jnp.float32),
      behaviour_entropy_bs=array((R, bucket), jnp.float32) if config.objective.select_by == ENTROPY else None,
    )
    answers = Answers(
      from_data_b=array((R,), jnp.bool_),
      tokens_bs=array((R, bucket), jnp.int32),
      mask_bs=array((R, bucket), jnp.bool_),
      truncated_b=array((R,), jnp.bool_),
    )
    Q = config.teacher_prompt
    teacher_prompts = Prompts(array((R, Q), jnp.int32), array((R, Q), jnp.bool_))
    batch = Batch(rollout, answers if config.objective.dataset_share else None, teacher_prompts if Q else None)
    write = sampling("rollout", "student", bucket, config.rollout.prompts_per_step, samples)
    prefix = (array((), jnp.int32),) if name == "probe" else ()
    return [write, Program(name, "student", bucket, R, (state, frozen, batch, *prefix))]

  c = config.eval
  marks_first = c.has_sets and c.baseline and first_step == 0
  marked = ("teacher", "student") if marks_first and config.teacher.path != STUDENT else ("student",)
  resident = {"student": state.student, "teacher": frozen.teacher}

  def layout(name: str, role: str) -> Program:
    return Program(name, role, 0, 0, (resident[role],))

  def canary(role: str) -> Program:
    prompts, S = (role == "teacher" and config.teacher_prompt) or P, columns(config)
    shapes = ((ROWS, prompts), jnp.int32), ((ROWS, prompts), jnp.bool_), ((ROWS, S), jnp.int32)
    return Program("canary", role, S, ROWS, (resident[role], *(array(*shape) for shape in shapes)))

  def token_kls() -> list[Program]:
    rows, S = token_kl.shape(config, mesh)
    coloured = rows and not config.teacher.routes
    prompts = array((rows, P), jnp.int32), array((rows, P), jnp.bool_)
    completions = array((rows, S), jnp.int32), array((rows, S), jnp.bool_)
    teacher = state.teacher or frozen.teacher
    return (
      [Program("token_kl", "student", S, rows, (state.student, teacher, *prompts, *completions))] if coloured else []
    )

  settings = [("evaluate_greedy", 1)] * c.greedy + [("evaluate_sampled", c.samples)] * bool(c.samples)
  evaluations = [
    *(layout(layout_program(config), role) for role in marked),
    *(sampling(name, role, config.horizon.max, c.batch, samples) for name, samples in settings for role in marked),
    *token_kls(),
  ]
  evaluations = evaluations if c.has_sets else []
  steps = [program for need in first_needs(config, first_step, horizon_state) for program in steps_at(*need)]
  steps = [layout("decode_layout", "student"), *steps] if steps else []
  canaries = [canary(role) for role in ("teacher", "student")] if frozen.teacher else []
  programs = [*canaries, *evaluations, *steps] if marks_first else [*canaries, *steps, *evaluations]
  return list({(program.label, program.bucket): program for program in programs}.values())  # one layout may serve both


def first_needs(config: Config, first_step: int = 0, horizon_state: Any = None) -> dict[tuple[str, int], int]:
  """{("update" or "probe", bucket): the first step from `first_step` on that may run it}, in that order. Each goes with
  the rollout of its bucket. `horizon_state`: as in `list_programs`."""
  horizon, ladder, needs = config.horizon.build(), config.ladder(), {}
  for step in range(first_step, config.steps):
    name = "update" if horizon.prefix(step) is None else "probe"
    for H in horizon.planned(step, first_step, horizon_state):
      needs.setdefault((name, bucket_for(H, ladder)), step)
  return needs
