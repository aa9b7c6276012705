"""A drawn horizon: as likely as it says, and weights whose mean over the draws is the full horizon's, exactly."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.config import from_config_dict
from opd_jax.horizon import random_prefix
from opd_jax.objectives import TokenWeights, make_token_weights


def test_every_rung_is_drawn_as_often_as_it_says_and_alike_each_time():
  horizon = random_prefix((8, 16, 32, 64), 48, 10)
  assert horizon.rungs == (16, 32, 48)
  counts = Counter(horizon(step) for step in range(6000))
  assert set(counts) == {16, 32, 48} and all(abs(count - 2000) < 150 for count in counts.values())
  assert [horizon(step) for step in range(20)] == [random_prefix((8, 16, 32, 64), 48, 10)(step) for step in range(20)]
  assert horizon.reached == ((16, 1.0), (32, pytest.approx(2 / 3)), (48, pytest.approx(1 / 3)))


def test_the_mean_over_all_draws_is_the_sum_at_the_full_horizon():
  """Three rows that end on their own at 2, 9 and never; the loss of a token is any number. Enumerated."""
  horizon = random_prefix((4, 8, 12), 12, 4)
  lengths, loss = np.array([2, 9, 12]), np.random.default_rng(0).normal(size=(3, 12))
  weigh = TokenWeights(reached=horizon.reached)

  def value(H, width):
    mask = jnp.asarray(np.arange(width) < np.minimum(lengths, H)[:, None])
    return float((np.asarray(weigh(jnp.zeros((3, width), jnp.int32), mask)) * loss[:, :width]).sum())

  mean = np.mean([value(H, bucket) for H, bucket in ((4, 4), (8, 8), (12, 12))])
  full = (loss * (np.arange(12) < lengths[:, None])).sum() / (3 * 12)
  assert mean == pytest.approx(full, rel=1e-5)
  assert value(8, 8) == pytest.approx(value(8, 12), rel=1e-6)  # whatever the bucket


def test_a_config_brings_the_weights_along():
  values = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}
  config = from_config_dict(values | {"horizon": {"kind": "random", "max": 64, "start": 16, "buckets": (16, 32, 64)}})
  assert make_token_weights(config).reached == config.horizon.build().reached
  assert make_token_weights(from_config_dict(values)).reached == ()
