"""From a recipe to weights, by ordinary next-token training on chains of thought. Half a minute on one CPU core.

    windows of 6 letters, 64 a batch  ─►  whole problems, 32 a batch  ─►  learning rate to zero  ─►  teacher
                                                                                    teacher ─► wrong rule ─► student

One jitted step serves all of it, compiled for two shapes: the learning rate is an argument.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.arithmetic import task
from opd_jax.arithmetic.recipe import Recipe
from opd_jax.arithmetic.tokenizer import END_ID, encode
from opd_jax.models import Model, forward, initialize

_TEACHER, _STUDENT = 1, 2  # streams of problems of a seed
_RECENT = 10  # steps over which "right throughout" is averaged

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts of `prompt` tokens and their completions: ids and rotary positions, both int32 [B, T]."""

  tokens_bt: np.ndarray
  positions_bt: np.ndarray
  prompt: int


@dataclasses.dataclass(frozen=True)
class _Learner:
  """A model in training. `recent`: loss and share of rows right throughout, of the last steps (newest last)."""

  recipe: Recipe
  model: Model
  opt_state: optax.OptState
  steps: int = 0
  recent: tuple[tuple[jax.Array, jax.Array], ...] = ()

  @classmethod
  def start(cls, recipe: Recipe, model: Model) -> "_Learner":
    return cls(recipe, model, _optimizer(recipe).init(model.params))

  def step(self, batch: Batch, learning_rate: float) -> "_Learner":
    model, opt_state, loss, exact = _step(
      self.model, self.opt_state, batch.tokens_bt, batch.positions_bt, learning_rate,
      prompt=batch.prompt, recipe=self.recipe,
    )  # fmt: skip
    return _Learner(self.recipe, model, opt_state, self.steps + 1, (*self.recent, (loss, exact))[-_RECENT:])

  @property
  def exact(self) -> float:
    return float(np.mean([exact for _, exact in self.recent]))

  def __str__(self) -> str:
    loss = float(np.mean([loss for loss, _ in self.recent]))
    return f"step {self.steps:4d}  loss {loss:.4f}  chains right throughout {self.exact:4.0%}"


def make_teacher(recipe: Recipe, say: Say) -> Model:
  """A model that knows the right rule, float32. `say` gets a progress line now and then.

  Raises RuntimeError where a stage is not learned within `recipe.max_steps` steps.
  """
  r, letters = recipe, len(task.LETTERS)
  generator = np.random.default_rng((r.seed, _TEACHER))
  learner = _Learner.start(r, initialize(r.architecture, jax.random.key(r.seed), "float32"))
  learner = _learn(learner, lambda: window_batch(r, generator), r.window_exact, f"teacher, {r.window} letters", say)
  learner = _learn(learner, lambda: whole_batch(r, generator), r.exact, f"teacher, {letters} letters", say)
  for step in range(r.decay_steps):
    learner = learner.step(whole_batch(r, generator), r.learning_rate * (1 - step / r.decay_steps))
  say(f"teacher, last: {learner}")
  return learner.model


def make_student(recipe: Recipe, teacher: Model, variant: str, say: Say) -> Model:
  """The teacher after some steps on the wrong rule of `variant`, float32."""
  r = recipe
  generator = np.random.default_rng((r.seed, _STUDENT))
  learner = _Learner.start(r, teacher)
  for _ in range(r.student_steps):
    learner = learner.step(whole_batch(r, generator, variant), r.student_learning_rate)
  say(f"student, {variant}: {learner}")
  return learner.model


def whole_batch(recipe: Recipe, generator: np.random.Generator, variant: str | None = None) -> Batch:
  """Problems with all letters, solved by the right rule or by the wrong one of a variant."""
  digits_bn = task.draw_digits(generator, recipe.rows)
  mistakes_bn = None if variant is None else task.draw_mistakes(variant, digits_bn, recipe.mistake, generator)
  return _batch(digits_bn, task.running_sums(digits_bn, mistakes_bn), np.zeros(recipe.rows, int), 0)


def window_batch(recipe: Recipe, generator: np.random.Generator) -> Batch:
  """Problems of a few letters in a row, with completions moved away from their prompts.

  whole problem    a3b1c4 ... x2:a3=3b1=4c4=3...     a digit is 48 to 94 tokens before its letter in the chain
  window of 3      d0e2f1:d0=0e2=2f1=3               6 to 10
  moved            d0e2f1:      d0=0e2=2f1=3         6 + gap to 10 + gap, gap at most 84: all up to 94
  """
  rows, letters = recipe.window_rows, len(task.LETTERS)
  digits_bn = task.draw_digits(generator, rows, recipe.window)
  first_b = generator.integers(letters - recipe.window + 1, size=rows)
  gap_b = generator.integers(4 * (letters - recipe.window) + 1, size=rows)
  return _batch(digits_bn, task.running_sums(digits_bn), first_b, gap_b)


def _batch(digits_bn: np.ndarray, sums_bn: np.ndarray, first_b: np.ndarray, gap_b: np.ndarray | int) -> Batch:
  texts = [
    task.prompt(digits_n, first) + task.chain(digits_n, sums_n, first)
    for digits_n, sums_n, first in zip(digits_bn, sums_bn, first_b)
  ]
  tokens_bt = np.pad(encode(texts), ((0, 0), (0, 1)), constant_values=END_ID)
  prompt = 2 * digits_bn.shape[1] + 1
  positions_t = np.arange(tokens_bt.shape[1])
  moved_bt = np.where(positions_t >= prompt, np.reshape(gap_b, (-1, 1)), 0)
  return Batch(tokens_bt, np.broadcast_to(positions_t + moved_bt, tokens_bt.shape).astype(np.int32), prompt)


def _learn(learner: _Learner, draw: Callable[[], Batch], exact: float, name: str, say: Say) -> _Learner:
  """Steps until `exact` of the rows are right throughout, looked at now and then."""
  r = learner.recipe
  for step in range(1, r.max_steps + 1):
    learner = learner.step(draw(), r.learning_rate * min(1.0, learner.steps / r.warmup_steps))
    if step % r.check_every == 0:
      say(f"{name}: {learner}")
      if learner.exact >= exact:
        return learner
  raise RuntimeError(f"{name} was not learned in {r.max_steps} steps: this recipe does not work with seed {r.seed}")


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
  return optax.chain(optax.clip_by_global_norm(recipe.clip), optax.scale_by_adam(b2=recipe.b2))


@functools.partial(jax.jit, static_argnames=("prompt", "recipe"), donate_argnames="opt_state")
def _step(model: Model, opt_state, tokens_bt, positions_bt, learning_rate, *, prompt: int, recipe: Recipe):
  """One step of Adam on the completions' cross-entropy: model, optimizer state, loss in nats a token, exact."""
  inputs_bt, targets_bs = tokens_bt[:, :-1], tokens_bt[:, prompt:]

  def loss_of(params):
    candidate = dataclasses.replace(model, params=params)
    hidden_btd, _ = forward(candidate, inputs_bt, positions_bt[:, :-1], jnp.ones(inputs_bt.shape, bool))
    logits_bsv = hidden_btd[:, prompt - 1 :] @ candidate.head_vd.T
    loss = optax.softmax_cross_entropy_with_integer_labels(logits_bsv, targets_bs).mean()
    return loss, jnp.all(logits_bsv.argmax(-1) == targets_bs, axis=1).mean()

  (loss, exact), gradient = jax.value_and_grad(loss_of, has_aux=True)(model.params)
  updates, opt_state = _optimizer(recipe).update(gradient, opt_state)
  params = jax.tree.map(lambda p, u: p - learning_rate * u, model.params, updates)
  return dataclasses.replace(model, params=params), opt_state, loss, exact
