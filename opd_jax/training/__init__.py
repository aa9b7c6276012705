"""The student learns: state, one step, checkpoints, the loop around them."""

from opd_jax.training.audit import audit_pair
from opd_jax.training.checkpoint import Checkpointer
from opd_jax.training.loop import restore_student, train
from opd_jax.training.run import Run, open_model, open_run
from opd_jax.training.state import TrainState
from opd_jax.training.step import update
from opd_jax.training.teacher import load_teacher

__all__ = [
  "Checkpointer",
  "Run",
  "TrainState",
  "audit_pair",
  "load_teacher",
  "open_model",
  "open_run",
  "restore_student",
  "train",
  "update",
]
