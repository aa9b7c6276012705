"""The numbers of a batch on their way from the device to a row of `metrics.jsonl`.

A mean of means is wrong as soon as micro-batches or devices hold different numbers of valid tokens. So nothing is
divided on the device: a metric stays a (sum, count) pair while it is added up, and is divided once, on the host.

    micro-batch 0: sum 6.0, count 3 ┐
    micro-batch 1: sum 1.0, count 1 ┴─ merge ─► sum 7.0, count 4 ─ to_floats ─► 1.75
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.tree_util.register_dataclass, data_fields=["total", "count"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Ratio:
  """A weighted mean that is not divided yet. Both fields are float32 scalars, or [N] of N means; it is a pytree."""

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array | None = None) -> Self:
    """The mean of `values` under `weights` of a shape that broadcasts to theirs (a mask, or None for all alike).

    A value whose weight is 0 is left out altogether: it may be NaN, as it may on padding.
    """
    values = jnp.asarray(values, jnp.float32)
    if weights is None:
      return cls(values.sum(), jnp.asarray(values.size, jnp.float32))
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
    return cls(jnp.where(weights != 0, values * weights, 0.0).sum(), weights.sum())

  @classmethod
  def stack(cls, ratios: Sequence[Self]) -> Self:
    """Several means as one metric, reported as a list."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *ratios)

  @classmethod
  def zero(cls) -> Self:
    """Nothing counted yet."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def merge(self, other: Self) -> Self:
    return type(self)(self.total + other.total, self.count + other.count)

  def to_float(self) -> float | list[float]:
    """sum / count in float64, a list of them where there are several; NaN where nothing was counted."""
    total, count = np.asarray(self.total, np.float64), np.asarray(self.count, np.float64)
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count != 0).tolist()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["total"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Total:
  """A sum that is reported as it is, such as generated tokens. One scalar; it is a pytree."""

  total: jax.Array

  def merge(self, other: Self) -> Self:
    return type(self)(self.total + other.total)

  def to_float(self) -> float:
    return float(self.total)


Metrics = dict[str, Ratio | Total]


def merge(left: Metrics, right: Metrics) -> Metrics:
  """Both parts of one batch as one. KeyError where the two do not name the same metrics."""
  if left.keys() != right.keys():
    raise KeyError(f"metrics differ: {sorted(left.keys() ^ right.keys())}")
  return {name: metric.merge(right[name]) for name, metric in left.items()}


def to_floats(metrics: Mapping[str, Ratio | Total]) -> dict[str, float | list[float]]:
  """Host floats for all metrics, with one transfer for all of them (it waits for the device)."""
  return {name: metric.to_float() for name, metric in jax.device_get(dict(metrics)).items()}
