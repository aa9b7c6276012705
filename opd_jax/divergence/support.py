"""Divergences on a local support: the K entries that a model ranks highest, and what is done about the rest.

A sum of p log(p/q) truncated to the support alone is no divergence (it can be negative, and training on it collapses:
verl issue 5041), so one of several repairs is always applied. Each has a gradient of the form

    d per_token / d z_v = centre * p_v - exp(tilt) * p_v   off the support (tilt only for the forward tail),
                          value_k                          at the k-th entry of the support,

so that the pass over the vocabulary needs the student's probabilities and nothing of the teacher.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opd_jax.divergence.blocks import Blocks
from opd_jax.divergence.problem import MASKED, Problem


class Entries(NamedTuple):
  """Vocabulary entries chosen for each token, all [T, K], by falling logit of the model that chose them.

  Entries that do not exist have MASKED logits, so probability 0 under both models.
  """

  ids: jax.Array
  student: jax.Array  # z
  teacher: jax.Array  # y


class Coefficients(NamedTuple):
  """The gradient of a token's loss in its student logits: centre * p - exp(tilt) * p, and `values` at `ids`."""

  centre: jax.Array  # [T]
  tilt: jax.Array | None  # [T]
  ids: jax.Array  # [T, K] vocabulary ids, -1 for none
  values: jax.Array  # [T, K]


class Settled(NamedTuple):
  """A support divergence: the losses and diagnostics, and the coefficients of its gradient."""

  per_token: jax.Array  # [T]
  student_mass: jax.Array  # [T]
  teacher_mass: jax.Array  # [T]
  overlap: jax.Array  # [T]
  gradient: Coefficients


def start(problem: Problem, tokens: int, dtype) -> tuple[Entries, ...]:
  """Nothing chosen yet: one `Entries` for each model that chooses."""
  low = jnp.full((tokens, problem.top_k), MASKED, dtype)
  empty = Entries(jnp.full(low.shape, -1, jnp.int32), low, low)
  return (empty, empty) if problem.support == "union" else (empty,)


def update(problem: Problem, chosen: tuple[Entries, ...], ids: jax.Array, z: jax.Array, y: jax.Array):
  """Adds a block: vocabulary ids [block] and logits z, y [T, block]."""
  block = Entries(jnp.broadcast_to(ids.astype(jnp.int32), z.shape), z, y)
  few = min(problem.top_k, z.shape[1])
  return tuple(
    _best(chooser, problem.top_k, _joined(old, _best(chooser, few, block)))
    for chooser, old in zip(_choosers(problem), chosen)
  )


def merge(problem: Problem, chosen: tuple[Entries, ...], axis: str) -> tuple[Entries, ...]:
  """The choice from the whole vocabulary, from the choices of the devices that share it."""
  gathered = lax.all_gather(chosen, axis, axis=1, tiled=True)
  return tuple(_best(chooser, problem.top_k, entries) for chooser, entries in zip(_choosers(problem), gathered))


def combined(problem: Problem, chosen: tuple[Entries, ...]) -> Entries:
  """The support. A union keeps the student's entries and those of the teacher's that are not among them."""
  if problem.support != "union":
    return chosen[0]
  by_student, by_teacher = chosen
  twice = (by_teacher.ids[:, :, None] == by_student.ids[:, None, :]).any(axis=2)
  nothing = Entries(-1, MASKED, MASKED)
  return _joined(by_student, Entries(*(jnp.where(twice, none, old) for none, old in zip(nothing, by_teacher))))


def joined_by(entries: Entries, ids: jax.Array, z: jax.Array, y: jax.Array) -> Entries:
  """The support and one entry more, [T, K + 1]: the sampled tokens, [T] each, where they are not in it already."""
  new = ~(entries.ids == ids[:, None]).any(axis=1)
  one = (jnp.where(new, value, none)[:, None] for value, none in zip((ids, z, y), Entries(-1, MASKED, MASKED)))
  return _joined(entries, Entries(*one))


def outside(blocks: Blocks, index: jax.Array, entries: Entries, log_p: jax.Array, log_q: jax.Array):
  """The block's share of (log-mass of p, of q) outside the support, each [T], from log-probabilities [T, block]."""
  columns = blocks.positions(index, entries.ids)
  tokens = jnp.arange(log_p.shape[0])[:, None]
  log_p = log_p.at[tokens, columns].set(MASKED, mode="drop")
  log_q = log_q.at[tokens, columns].set(MASKED, mode="drop")
  return jax.nn.logsumexp(log_p, axis=1), jax.nn.logsumexp(log_q, axis=1)


def settle(problem: Problem, entries: Entries, normalisers, tails, sampled) -> Settled:
  """Losses and gradient coefficients.

  Args:
    problem: the call.
    entries: the support.
    normalisers: (student, teacher), `formulas.Normaliser`.
    tails: `tail` only, (log-mass of p, of q) outside the support, each [T].
    sampled: `score_tail` and `head_tail` only, (ids, log p, log q) of the sampled tokens, each [T].
  """
  log_p = normalisers[0].log_probability(entries.student)
  log_q = normalisers[1].log_probability(entries.teacher)
  p, q, d = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q
  masses = jnp.sum(p, axis=1), jnp.sum(q, axis=1), jnp.sum(jnp.minimum(p, q), axis=1)
  ids, forward, tilt = entries.ids, problem.kind == "forward_kl", None
  if problem.repair == "renormalize":
    log_p, log_q = jax.nn.log_softmax(entries.student), jax.nn.log_softmax(entries.teacher)
    p, q, d = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q
    per_token = jnp.sum(-q * d if forward else p * d, axis=1)
    values = p - q if forward else p * (d - per_token[:, None])
    centre = jnp.zeros_like(per_token)
  elif problem.repair == "tail":
    p_rest, q_rest, d_rest = jnp.exp(tails[0]), jnp.exp(tails[1]), tails[0] - tails[1]
    if forward:
      per_token = jnp.sum(-q * d, axis=1) - q_rest * d_rest
      centre, tilt, values = jnp.ones_like(per_token), -d_rest, p - q
    else:
      per_token = jnp.sum(p * d, axis=1) + p_rest * d_rest
      centre, values = d_rest - per_token, p * (d - per_token[:, None])
  elif problem.repair == "truncate":  # forward: sum over S of q log(q/p)
    per_token, centre = jnp.sum(-q * d, axis=1), masses[1]
    values = p * centre[:, None] - q
  elif forward:  # generalized: sum over S of q log(q/p) - q + p
    per_token = jnp.sum(p - q - q * d, axis=1)
    centre = masses[1] - masses[0]
    values = p - q + p * centre[:, None]
  else:
    inner = jnp.sum(p * d, axis=1)
    if problem.repair == "generalized":  # sum over S of p log(p/q) - p + q
      per_token, centre = jnp.sum(p * d - p + q, axis=1), -inner
      values = p * (d - inner[:, None])
    else:  # sum over S of p (log(p/q) - less), and the sampled token's score where it fell outside
      less = 1 if problem.repair == "score_tail" else 0
      sampled_ids, sampled_log_p, sampled_log_q = sampled
      missed = ~(ids == sampled_ids[:, None]).any(axis=1)
      advantage = jnp.where(missed, sampled_log_p - sampled_log_q, 0)
      # The surrogates' values: one whose gradient is that of the loss (score_tail), and the loss as published.
      per_token = inner - less * masses[0] + advantage * (sampled_log_p if less else 1)
      centre = -inner - (1 - less) * masses[0] - advantage
      at_sampled = centre * jnp.exp(sampled_log_p) + advantage
      ids = jnp.concatenate([ids, jnp.where(missed, sampled_ids, -1)[:, None]], axis=1)
      values = jnp.concatenate([p * (d + (1 - less) + centre[:, None]), at_sampled[:, None]], axis=1)
  return Settled(per_token, *masses, Coefficients(centre, tilt, ids, values))


def set_values(blocks: Blocks, index: jax.Array, coefficients: Coefficients, dz: jax.Array) -> jax.Array:
  """A block of logit gradients [T, size] with the entries of the support at their own values."""
  columns = blocks.positions(index, coefficients.ids)
  if columns.shape[1] == 1:  # the sampled token alone: a comparison fuses where a scatter would not
    return jnp.where(jnp.arange(dz.shape[1]) == columns, coefficients.values, dz)
  return dz.at[jnp.arange(dz.shape[0])[:, None], columns].set(coefficients.values, mode="drop")


def _choosers(problem: Problem) -> tuple[str, ...]:
  return ("student", "teacher") if problem.support == "union" else (problem.support,)


def _joined(left: Entries, right: Entries) -> Entries:
  return Entries(*(jnp.concatenate(pair, axis=1) for pair in zip(left, right)))


def _best(chooser: str, count: int, entries: Entries) -> Entries:
  """The `count` entries with the chooser's highest logits; among equals, the earliest."""
  _, columns = lax.top_k(getattr(entries, chooser), count)
  return Entries(*(jnp.take_along_axis(values, columns, axis=1) for values in entries))
