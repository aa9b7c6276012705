"""Teachers and students of the control toy, and what is looked at while the students learn.

student 0 ─► the same steps with each gamma, side by side on the same noise ─► variance, distance to the targets
students before and after (gamma = 0), walks of 4 .. 64 moves ─► variance by length
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.evidence import control_toy as toy
from opd_jax.objectives.policy_gradient import return_to_go

_TEACHER_ROWS, _TEACHER_RATE = 128, 3e-3
_JUDGED = 3  # last moves of each half that a teacher is paid for
_ROWS, _RATE, _LOOK_ROWS = 64, 1e-3, 256


@functools.partial(jax.jit, static_argnames="iterations")
def make_teachers(key: jax.Array, iterations: int):
  """One policy a task by REINFORCE, stacked [2, ...]: returns are standardised at each time over the batch."""
  optimizer = optax.adam(_TEACHER_RATE)

  def teach(key, task):
    half, (first, second) = toy.MOVES // 2, jnp.asarray(toy.TARGETS)[task]
    due_t = jnp.where(jnp.arange(toy.MOVES) < half, first, second)
    counts_t = jnp.arange(toy.MOVES) % half >= half - _JUDGED

    def step(carry, key):
      policy, state = carry
      walked = toy.walk(policy, task, jax.random.normal(key, (_TEACHER_ROWS, toy.MOVES)))
      to_go_bt = return_to_go(counts_t * -jnp.abs(walked.positions_bt - due_t), 1.0)
      advantage_bt = (to_go_bt - to_go_bt.mean(axis=0)) / (to_go_bt.std(axis=0) + 1e-6)
      gradient = jax.grad(lambda policy: -(advantage_bt * toy.log_prob(policy, walked)).mean())(policy)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(policy, updates), state), None

    policy_key, steps_key = jax.random.split(key)
    policy = toy.init_policy(policy_key)
    return jax.lax.scan(step, (policy, optimizer.init(policy)), jax.random.split(steps_key, iterations))[0][0]

  return jax.vmap(teach)(jax.random.split(key), jnp.arange(2))


def one_seed(
  seed: int, *, teacher: int, student: int, every: int, gammas: tuple, lengths: tuple, walks: int
) -> dict[str, Any]:
  """Steps, and at each of them the variance with each gamma and the distances to the targets; the student's variance by
  length.

  Args:
    teacher, student: iterations of each.
    every: iterations between two looks.
    gammas, lengths: discounts, and numbers of moves.
    walks: of the measure by length.
  """
  teachers_key, student_key, train_key, length_key = jax.random.split(jax.random.key(seed), 4)
  teachers = make_teachers(teachers_key, teacher)
  first = toy.init_policy(student_key)
  students = jax.tree.map(lambda x: jnp.stack([x] * len(gammas)), first)
  states, gamma_g = jax.vmap(optax.adam(_RATE).init)(students), jnp.asarray(gammas)
  steps, looks = list(range(0, student + 1, every)), []
  for step in steps:
    train_key, look_key, key = jax.random.split(train_key, 3)
    looks.append(jax.device_get(_look(students, teachers, gamma_g, look_key)))
    if step < student:
      students, states = _train(students, states, teachers, gamma_g, key, iterations=every)
  last = jax.tree.map(lambda x: x[gammas.index(0.0)], students)
  by_length = {
    name: [jax.device_get(_by_length(policy, teachers, length_key, moves=T, walks=walks)) for T in lengths]
    for name, policy in (("before", first), ("after", last))
  }
  return {
    "steps": steps,
    "variance": np.stack([look[0] for look in looks]),  # [looks, gammas]
    "misses": np.stack([look[1] for look in looks]),  # [looks, gammas, halves]
    "teacher_misses": jax.device_get(_misses_of(teachers, jax.random.fold_in(look_key, 1))),
    "by_length": {name: np.stack(values) for name, values in by_length.items()},  # [lengths, (gamma 0, gamma 1)]
  }


@functools.partial(jax.jit, static_argnames="iterations")
def _train(students, states, teachers, gamma_g, key, *, iterations: int):
  """All gammas side by side on the same noise, the two tasks in turn."""
  optimizer = optax.adam(_RATE)

  def step(carry, x):
    i, key = x
    task, noise_bt = i % 2, jax.random.normal(key, (_ROWS, toy.MOVES))
    teacher = jax.tree.map(lambda stacked: stacked[task], teachers)

    def learn(student, state, gamma):
      walked = toy.walk(student, task, noise_bt)
      gradient = jax.grad(toy.surrogate)(student, walked, teacher, gamma)
      updates, state = optimizer.update(gradient, state)
      return optax.apply_updates(student, updates), state

    return jax.vmap(learn)(*carry, gamma_g), None

  keys = jax.random.split(key, iterations)
  return jax.lax.scan(step, (students, states), (jnp.arange(iterations), keys))[0]


@jax.jit
def _look(students, teachers, gamma_g, key):
  """(variances [gammas], misses [gammas, halves]), means over the two tasks."""
  measure_key, walk_key = jax.random.split(key)
  noise_nbt = jax.random.normal(measure_key, (toy.MICRO_BATCHES, _ROWS // toy.MICRO_BATCHES, toy.MOVES))
  noise_bt = jax.random.normal(walk_key, (_LOOK_ROWS, toy.MOVES))

  def look(student, gamma, teacher, task):
    of_micro_batches = toy.estimates(student, teacher, task, noise_nbt, gamma)
    return toy.variance(of_micro_batches), toy.misses(toy.walk(student, task, noise_bt), task)

  by_task = jax.vmap(look, in_axes=(None, None, 0, 0))
  looks = jax.vmap(lambda student, gamma: by_task(student, gamma, teachers, jnp.arange(2)))(students, gamma_g)
  return jax.tree.map(lambda x: x.mean(axis=1), looks)


@jax.jit
def _misses_of(teachers, key):
  """[halves] of the teachers themselves, mean over the two tasks."""
  noise_bt = jax.random.normal(key, (_LOOK_ROWS, toy.MOVES))
  by_task = jax.vmap(lambda teacher, task: toy.misses(toy.walk(teacher, task, noise_bt), task))
  return by_task(teachers, jnp.arange(2)).mean(axis=0)


@functools.partial(jax.jit, static_argnames=("moves", "walks"))
def _by_length(student, teachers, key, *, moves: int, walks: int):
  """[2] variance of the gradient of single walks with gamma 0 and 1, mean over the two tasks."""
  noise_n1t = jax.random.normal(key, (walks, 1, moves))

  def of(teacher, task):
    return jnp.stack([toy.variance(toy.estimates(student, teacher, task, noise_n1t, gamma)) for gamma in (0.0, 1.0)])

  return jax.vmap(of)(teachers, jnp.arange(2)).mean(axis=0)
