"""The horizon that follows the signal: against its rule written out over whole histories of diagnostics."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.config import from_config_dict
from opd_jax.errors import InputError
from opd_jax.horizon import reliability

RUNGS = (16, 32, 64, 128)


def run(horizon, history):
  """Horizons of the steps, each decided before its diagnostics are known."""
  state, lengths = horizon.init(), []
  for step, by_position in enumerate(history):
    lengths.append(horizon(step, state))
    state = horizon.update(state, {"loss_by_position": by_position})
  return lengths


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 4)), min_size=1, max_size=30), st.integers(1, 4))
def test_it_grows_after_every_window_whose_far_end_is_sound(history, every):
  horizon = reliability(RUNGS, 128, 16, every, 1.5)
  got = run(horizon, [[near] * 7 + [far] for near, far in history])
  rung, wanted = 0, []
  for step in range(len(history)):
    if step and step % every == 0:
      window = history[step - every : step]
      rung += sum(far for _, far in window) <= 1.5 * sum(sum([near] * 7) / 7 for near, _ in window)
    wanted.append(RUNGS[min(rung, 3)])
  assert got == wanted


def test_parts_without_tokens_say_nothing():
  horizon = reliability(RUNGS, 128, 16, 1, 1.5)
  nan = math.nan
  assert run(horizon, [[1.0] * 7 + [nan], [nan] * 7 + [1.0], [nan] * 4 + [1.0] * 4, [0.1] * 8]) == [16, 16, 16, 32]


def test_what_is_planned_for_is_the_fastest_that_it_may_grow():
  horizon = reliability((8, 16, 32, 64, 128), 100, 12, 5, 2.0)
  assert horizon.rungs == (16, 32, 64, 100)
  assert [horizon(step) for step in (0, 4, 5, 10, 15, 99)] == [16, 16, 32, 64, 100, 100]
  state = horizon.init()
  for step in range(40):
    assert horizon(step, state) <= horizon(step)
    state = horizon.update(state, {"loss_by_position": [1.0] * 8})
  assert horizon(40, state) == 100


@pytest.mark.parametrize("numbers", [(0, 16, 5, 1.5), (128, 256, 5, 1.5), (128, 16, 0, 1.5), (128, 16, 5, 0.0)])
def test_impossible_numbers_are_refused(numbers):
  with pytest.raises(ValueError):
    reliability(RUNGS, *numbers)


def test_a_config_builds_it_on_its_own_ladder():
  values = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}
  horizon = {"kind": "reliability", "max": 128, "start": 20, "every": 3, "buckets": (16, 48, 128)}
  config = from_config_dict(values | {"horizon": horizon})
  assert config.horizon.build().rungs == (48, 128) and config.ladder() == (16, 48, 128)
  with pytest.raises(InputError, match=r"horizon\.buckets"):
    from_config_dict(values | {"horizon": horizon | {"buckets": "auto"}})
