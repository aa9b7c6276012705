"""From a recipe to weights, with ordinary next-token training on chains of thought. Under a minute on one CPU core.

    windows of 6 letters, 64 a batch  ─►  whole problems, 32 a batch  ─►  learning rate to zero  ─►  teacher
                                                                                    teacher ─► wrong rule ─► student

One jitted step serves all of it (two shapes, two compiles): the learning rate is an argument.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.arithmetic import task
from opd_jax.arithmetic.recipe import Recipe
from opd_jax.arithmetic.tokenizer import END_ID, encode
from opd_jax.models import Model, forward, initialize

_TEACHER, _STUDENT = 1, 2  # streams of problems, beside those of the prompt files
_RECENT = 10  # steps over which "right throughout" is averaged

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Batch:
  """`tokens_bt` int32 [B, T], prompts of `prompt` tokens and their completions, and rotary `positions_bt`."""

  tokens_bt: np.ndarray
  positions_bt: np.ndarray
  prompt: int


def make_teacher(recipe: Recipe, say: Say) -> Model:
  """A model that knows the right rule, float32. `say` gets a progress line now and then."""
  r = recipe
  learner = _Learner(r, initialize(r.architecture, jax.random.key(r.seed), "float32"), r.b2, r.clip)
  learner.until(r.window_exact, lambda g: _window_batch(r, g), f"teacher, {r.window} letters", say)
  learner.until(r.exact, lambda g: _batch(r, g), f"teacher, {len(task.LETTERS)} letters", say)
  for step in range(r.decay_steps):
    learner.step(_batch(r, learner.generator(_TEACHER)), r.learning_rate * (1 - step / r.decay_steps))
  say(learner.line("teacher, done"))
  return learner.model


def make_student(recipe: Recipe, teacher: Model, variant: str, say: Say) -> Model:
  """The teacher after some steps on the wrong rule of `variant`, float32."""
  r = recipe
  learner = _Learner(r, teacher, 0.999, 0.0)
  for _ in range(r.student_steps):
    learner.step(_batch(r, learner.generator(_STUDENT), variant), r.student_learning_rate)
  say(learner.line(f"student, {variant}"))
  return learner.model
