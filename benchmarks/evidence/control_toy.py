r"""The toy of arXiv 2603.25562: a point on a line goes to one target, then to another; a mirrored task beside it.

    position   +2 |      ____
                  |   __/    \_
                0 |__/         \__                 task 0: +2 by half-time, then -3;  task 1: -2, then +3
               -3 |               \_______
                  +-------------------------- t    each move is drawn from N(mean, std) of the policy

A policy is a network of three layers and 4,022 parameters that sees task, position and time over T. What the paper does
not tell is ours: moves of at most 1, a std from 0.2 to 1, 20 moves, and a teacher's reward, minus the distance to the
target in the last three moves of each half (counted at every move, it pays to leave the first target early).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.objectives.policy_gradient import return_to_go

TARGETS = ((2.0, -3.0), (-2.0, 3.0))  # [task, half]
MOVES = 20
MICRO_BATCHES = 8  # of the paper's measure
_WIDTH = 60
_STD = (0.2, 1.0)


class Walk(NamedTuple):
  """What a policy did: inputs float32 [B, T, 3] (task as a sign, position, time over T), moves [B, T], positions after
  them [B, T]."""

  inputs_bti: jax.Array
  moves_bt: jax.Array
  positions_bt: jax.Array


def init_policy(key: jax.Array) -> list[dict[str, jax.Array]]:
  """Weights of three layers, [in, out] each, and biases. The last begins small: a walk without direction."""
  sizes, policy = (3, _WIDTH, _WIDTH, 2), []
  for layer, rows, columns, scale in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], (1.0, 1.0, 0.1), strict=True):
    weights = scale * jax.random.normal(layer, (rows, columns)) / rows**0.5
    policy.append({"weights": weights, "bias": jnp.zeros(columns)})
  return policy


def moments(policy, inputs_bti: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and logarithm of the std of the next move, [...] each."""
  hidden = inputs_bti
  for layer in policy[:-1]:
    hidden = jnp.tanh(hidden @ layer["weights"] + layer["bias"])
  mean, spread = jnp.moveaxis(hidden @ policy[-1]["weights"] + policy[-1]["bias"], -1, 0)
  low, high = jnp.log(jnp.asarray(_STD))
  return jnp.tanh(mean), low + (high - low) * jax.nn.sigmoid(spread)


def log_prob(policy, walk: Walk) -> jax.Array:
  """[B, T] log-densities of a walk's moves."""
  mean_bt, log_std_bt = moments(policy, walk.inputs_bti)
  return jax.scipy.stats.norm.logpdf(walk.moves_bt, mean_bt, jnp.exp(log_std_bt))


def walk(policy, task: jax.Array, noise_bt: jax.Array) -> Walk:
  """What a policy does on a task (0 or 1) with this noise, float32 [B, T] from N(0, 1)."""
  rows, moves = noise_bt.shape

  def move(position_b, x):
    t, noise_b = x
    inputs_bi = jnp.stack([jnp.full(rows, 1.0 - 2.0 * task), position_b, jnp.full(rows, t / moves)], axis=-1)
    mean_b, log_std_b = moments(policy, inputs_bi)
    move_b = mean_b + jnp.exp(log_std_b) * noise_b
    return position_b + move_b, (inputs_bi, move_b, position_b + move_b)

  _, steps = jax.lax.scan(move, jnp.zeros(rows), (jnp.arange(moves), noise_bt.T))
  return jax.tree.map(lambda x: x.swapaxes(0, 1), Walk(*steps))


def misses(walk: Walk, task: jax.Array) -> jax.Array:
  """[2] mean distances to the first target at half-time and to the second at the end."""
  moves = walk.moves_bt.shape[1]
  at_bh = walk.positions_bt[:, jnp.array([moves // 2 - 1, moves - 1])]
  return jnp.abs(at_bh - jnp.asarray(TARGETS)[task]).mean(axis=0)


def surrogate(student, walk: Walk, teacher, gamma: jax.Array) -> jax.Array:
  """[] whose gradient in `student` is the estimate g_gamma of the gradient of KL(student || teacher) over walks.

  g_gamma = mean over walks of sum_t (sum_{t' >= t} gamma^(t' - t) r_t') grad log p(move_t),
  r_t = log p(move_t) - log q(move_t).
  """
  cost_bt = jax.lax.stop_gradient(log_prob(student, walk) - log_prob(teacher, walk))
  return (return_to_go(cost_bt, gamma) * log_prob(student, walk)).sum(axis=1).mean()


def estimates(student, teacher, task: jax.Array, noise_nbt: jax.Array, gamma: jax.Array) -> jax.Array:
  """[N, P] estimates g_gamma of N micro-batches of B walks: their output layers, as one vector each."""

  def of_last(noise_bt):
    walked = walk(student, task, noise_bt)
    gradient = jax.grad(lambda last: surrogate([*student[:-1], last], walked, teacher, gamma))(student[-1])
    return jnp.concatenate([part.ravel() for part in jax.tree.leaves(gradient)])

  return jax.vmap(of_last)(noise_nbt)


def variance(estimates_np: jax.Array) -> jax.Array:
  """[] the paper's measure: mean over micro-batches of the squared distance to their mean."""
  return ((estimates_np - estimates_np.mean(axis=0)) ** 2).sum(axis=1).mean()
