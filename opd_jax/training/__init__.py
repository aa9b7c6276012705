"""The student learns: state, one step, checkpoints, the loop around them, and the run as other programs have it."""

from opd_jax.training.audit import audit_pair
from opd_jax.training.checkpoint import Checkpointer
from opd_jax.training.distillation import Run, distill, train
from opd_jax.training.loaded_pair import LoadedPair, load_pair
from opd_jax.training.run import OpenRun, open_model, open_run
from opd_jax.training.state import TrainState
from opd_jax.training.step import update
from opd_jax.training.student import restore_student
from opd_jax.training.teacher import load_teacher

__all__ = [
  "Checkpointer",
  "LoadedPair",
  "OpenRun",
  "Run",
  "TrainState",
  "audit_pair",
  "distill",
  "load_pair",
  "load_teacher",
  "open_model",
  "open_run",
  "restore_student",
  "train",
  "update",
]
