"""The student as a run gets it: as it came, from a checkpoint, and whole for whoever takes it away.

folder ─► float32 weights                                 all of them are trained, and saved
folder ─► frozen weights ─┬─ factors, drawn from the seed      student.lora: the factors are trained, and saved
checkpoint ─► factors ────┘
                          └─► their sum                        evaluated, exported
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax import models
from opd_jax.errors import InputError
from opd_jax.evaluation.questions import best_label
from opd_jax.hub import model_folder
from opd_jax.models import Model
from opd_jax.models.parameters import nested, shardings
from opd_jax.training.checkpoint import Checkpointer, Progress, identity
from opd_jax.training.run import OpenRun
from opd_jax.training.state import TrainState, abstract_state, init_state, make_optimizer

_STREAM = 2**32 - 3  # tells the key of the factors from those of steps, which are folded from the seed as well


def start(run: OpenRun, checkpoints: Checkpointer) -> tuple[TrainState, Progress]:
  """The newest checkpoint, or the student as it came. InputError where the checkpoint belongs to other models."""
  paths = _read_beside(run)
  if checkpoints.latest() is None:
    state = init_state(_load(run), make_optimizer(run.config), follows=run.config.teacher.ema > 0)
    identities = {role: _identity(each) for role, each in paths.items()}
    return state, Progress(0, run.config.seed, 0, run.horizon.init(), **identities)
  progress = checkpoints.progress()
  _refuse_others(run, progress, paths)
  return _restore(run, checkpoints), progress


def restore_student(run: OpenRun, which: str = "newest") -> tuple[Model, int]:
  """The student of a checkpoint of the workdir (float32, factors merged) and its step. `which`: "newest", "best" by
  `eval.keep_best`, or a step. InputError where there is none."""
  if not (run.workdir / "checkpoints").is_dir():
    raise InputError(f"{run.workdir} has no checkpoint: train first")
  checkpoints = Checkpointer(run.workdir, run.config.checkpoint.keep, best_label(run.config.eval))
  for line in checkpoints.damaged:
    print(line)
  step = checkpoints.find(which)
  _refuse_others(run, checkpoints.progress(), {"student": _read_beside(run)["student"]})
  student = _restore(run, checkpoints, step).student
  checkpoints.close()
  return whole(run, student), step


def whole(run: OpenRun, student: Model) -> Model:
  """The student of a state in float32, its factors merged; as it is where it has none."""
  if not run.config.student.lora.rank:
    return student
  placed = Model(nested(shardings(student.config, run.mesh)), student.config)
  return jax.jit(_merged, out_shardings=placed)(student)


def _merged(adapted: Model) -> Model:  # one function, so that jax knows it again
  return adapted.merged(jnp.float32).astype(jnp.float32)


def _load(run: OpenRun) -> Model:
  """As it came; under `student.lora` with fresh factors."""
  c = run.config.student
  student = models.load(run.student_path, dtype=jnp.dtype(c.weights_dtype), mesh=run.mesh)
  if not c.lora.rank:
    return student
  return models.add_factors(student, c.lora, jax.random.fold_in(jax.random.key(run.config.seed), _STREAM))


def _restore(run: OpenRun, checkpoints: Checkpointer, step: int | None = None) -> TrainState:
  """A checkpoint (None: the newest), its factors beside the weights that they were trained with."""
  c = run.config
  follows = c.teacher.ema > 0
  template = abstract_state(run.pair.student, make_optimizer(c), run.mesh, follows=follows, student=c.student)
  state = checkpoints.restore(template, step)
  if not c.student.lora.rank:
    return state
  return dataclasses.replace(state, student=_load(run).with_trained(state.student.trained))


def _read_beside(run: OpenRun) -> dict[str, list[str]]:
  """role -> paths of the models whose weights a checkpoint of the run does not hold."""
  return {
    "teacher": [taught.path for taught in run.teachers.values()],
    "reference": [run.reference_path] if run.reference_path else [],
    "student": [run.student_path] if run.config.student.lora.rank else [],
  }


def _identity(paths: list[str]) -> str:
  return " ".join(identity(model_folder(path, weights=True)) for path in paths)


def _refuse_others(run: OpenRun, progress: Progress, paths: dict[str, list[str]]) -> None:
  """Raises InputError where one of the paths is not what the checkpoint was made with."""
  for role, each in paths.items():
    if getattr(progress, role) != _identity(each):
      raise InputError(f"{', '.join(each)} is not the {role} that {run.workdir} was trained with: its weights differ")
