"""Metrics over micro-batches and devices are those of the whole batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.telemetry.metrics import Ratio, Total, merge, to_floats


@given(data=st.data(), rows=st.integers(1, 12))
@settings(max_examples=15)
def test_any_split_merges_to_the_whole(data, rows):
  # Small integers: their float32 sums are exact in any order, so the comparison is too.
  values = np.array(data.draw(st.lists(st.integers(-99, 99), min_size=rows, max_size=rows)), np.float32)
  mask = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
  cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
  merged = {"loss": Ratio.zero(), "tokens": Total(jnp.zeros((), jnp.int32))}
  for part in np.split(np.arange(rows), cuts):
    merged = merge(merged, {"loss": Ratio.of(values[part], mask[part]), "tokens": Total(jnp.sum(mask[part]))})
  found = to_floats(merged)
  assert found["tokens"] == mask.sum()
  if mask.any():
    assert found["loss"] == values[mask].astype(np.float64).sum() / mask.sum()
  else:
    assert math.isnan(found["loss"])


def test_a_mean_of_means_would_be_another_number():
  parts = [Ratio.of(jnp.array([2.0, 2.0, 2.0])), Ratio.of(jnp.array([1.0]))]
  assert parts[0].merge(parts[1]).to_float() == 1.75


def test_weights_broadcast_and_what_has_no_weight_may_be_nan():
  values_bs = jnp.array([[1.0, jnp.nan], [3.0, jnp.nan]])
  assert Ratio.of(values_bs, jnp.array([1.0, 0.0])).to_float() == 2.0


def test_it_is_a_pytree_that_scans():
  def add(carry, value):
    return carry.merge(Ratio.of(value)), None

  whole, _ = jax.jit(lambda values: jax.lax.scan(add, Ratio.zero(), values))(jnp.arange(6.0).reshape(3, 2))
  assert (whole.to_float(), float(whole.count)) == (2.5, 6.0)


def test_metrics_of_other_names_do_not_merge():
  with pytest.raises(KeyError, match="entropy"):
    merge({"loss": Ratio.zero()}, {"loss": Ratio.zero(), "entropy": Ratio.zero()})
