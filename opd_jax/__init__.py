"""opd_jax: on-policy distillation of language models, JAX and TPU first.

The folders tell the life of one batch:

    config, horizon, divergence, telemetry     what is asked for, and the pure parts
    distributed, data, programs                the mesh, the prompts, the table of compiled programs
    decode_attention, models                   one decoder for student and teacher
    rollout                                    the student writes
    scoring, objectives, evaluation            the teacher reads; the loss; the marks
    training                                   state, step, checkpoint, loop, and the run around them
    prepare, train, evaluate, export, report   `python -m opd_jax.X`

For a notebook or another program (docs/from_python.md), imported when they are first asked for:

    defaults, Config                           what a run is
    distill, Run                               a run, step by step
    load_pair, LoadedPair                      student and teacher in memory, without a run
    InputError, TrainingError                  what is wrong, in one line
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from opd_jax.config import Config, defaults
  from opd_jax.errors import InputError, TrainingError
  from opd_jax.training import LoadedPair, Run, distill, load_pair

__all__ = ["Config", "InputError", "LoadedPair", "Run", "TrainingError", "defaults", "distill", "load_pair"]

_HOMES = {
  "opd_jax.config": ("Config", "defaults"),
  "opd_jax.errors": ("InputError", "TrainingError"),
  "opd_jax.training": ("LoadedPair", "Run", "distill", "load_pair"),
}


def __getattr__(name: str) -> object:
  """Importing all of it takes seconds and starts jax, whose settings a program may still want to change."""
  for home, names in _HOMES.items():
    if name in names:
      return getattr(importlib.import_module(home), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
