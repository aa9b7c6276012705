"""Updates that are better not made: what tells them, what a skipped one leaves as it was, and what is said of them.

    loss, gradient's norm, update's norm: finite?   gradient's norm <= optimizer.skip_above?   any token that trains?
        all ─► the new state
        else ─► the old one: weights, moments, the place in the learning rate's schedule, the teacher that follows

A select, not a branch: it is fused into the loops that write the new weights, which have read the old ones anyway, so
that it costs no memory. What decides is the same number on every device. The step is counted all the same: its prompts
are used up, and random keys are folded from it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from opd_jax.distributed import fetch
from opd_jax.models import Model
from opd_jax.telemetry.console import number
from opd_jax.training.state import TrainState


def measure(gradient: Any) -> tuple[jax.Array, jax.Array]:
  """The global norm of a gradient, float32 scalar; and which of its arrays has the largest norm, in the order of the
  tree's leaves: the first that is not finite, where one is. int32 scalar."""
  squares = jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradient)])
  return jnp.sqrt(squares.sum()), jnp.argmax(jnp.where(jnp.isfinite(squares), squares, jnp.inf))


def is_sound(
  loss: jax.Array, gradient_norm: jax.Array, update_norm: jax.Array, weights_bs: jax.Array, skip_above: float
) -> jax.Array:
  """bool scalar: whether to make an update.

  Args:
    loss, gradient_norm, update_norm: scalars.
    weights_bs: of the tokens [B, S]; all 0 where none trains.
    skip_above: the most that the gradient's norm may be; 0: whatever is finite.
  """
  small = gradient_norm <= skip_above if skip_above else jnp.isfinite(gradient_norm)
  return jnp.isfinite(loss) & jnp.isfinite(update_norm) & small & jnp.any(weights_bs != 0)


def take(sound: jax.Array, new: TrainState, old: TrainState) -> TrainState:
  """The new state where it is sound, bit for bit the old one elsewhere; one step further in either case."""
  taken = jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)
  return TrainState(taken.student, taken.opt_state, old.step + 1, taken.teacher)


def parameter_names(model: Model) -> list[str]:
  """Of the arrays of a model that are trained, or of a gradient's, in the order of their leaves."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model.trained)]
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def first_broken(model: Model) -> str | None:
  """The first trained parameter that holds a number that is not finite. Every process of a cluster must call it."""
  finite = jax.jit(lambda params: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]))(model.trained)
  return next((name for name, whole in zip(parameter_names(model), fetch(finite)) if not whole), None)


def reason(row: Mapping[str, Any], skip_above: float) -> tuple[str, str]:
  """Why the update of a step was skipped, from its row, and what to do about it."""
  loss, norm, way = row["loss"], row["grad_norm"], "--config.debug.nans=true names the first NaN"
  if loss == norm == 0:
    return "no token of its batch trains", way
  if not (math.isfinite(loss) and math.isfinite(norm)):
    why = f"the loss is {number(loss, 3)}, the gradient's norm {number(norm, 3)}"
  elif skip_above and norm > skip_above:
    why = f"the gradient's norm is {number(norm, 3)}, above optimizer.skip_above={skip_above:g}"
    way = "raise optimizer.skip_above"
  else:
    why = "the update that it would make is not finite"
  return f"{why}; largest in {row['largest_gradient']}", way
