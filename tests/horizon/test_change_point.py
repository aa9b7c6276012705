"""The horizon that holds most cuts: its rule written out over whole histories of shares."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.config import from_config_dict
from opd_jax.errors import InputError
from opd_jax.horizon import change_point

RUNGS = (16, 32, 64, 128)
VALUES = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}

# What responses need, each step: a length, or more than any horizon shows.
steps_of_needs = st.lists(st.lists(st.integers(1, 300), min_size=4, max_size=4), min_size=1, max_size=30)


def shares(needs, H):
  """Shares of responses that need no more than each rung, as far as a horizon H lets see."""
  return [sum(need <= min(rung, H) for need in needs) / len(needs) for rung in RUNGS]


def follow(horizon, history, state=None):
  state, seen = horizon.init() if state is None else state, []
  for step, needs in enumerate(history):
    seen.append(horizon(step, state))
    state = horizon.update(state, {"needed_by_rung": shares(needs, seen[-1])})
  return seen, state


def test_it_grows_while_responses_still_teach_at_its_end_and_then_fits_them():
  """Needs of 40 to 49: seen at 64 for the first time; then some fall to 10."""
  horizon = change_point(RUNGS, 128, 16, 2, 0.9)
  long, short = [list(range(40, 50))] * 8, [[10] * 10] * 4
  seen, _ = follow(horizon, long + short)
  assert seen == [16, 16, 32, 32, 64, 64, 64, 64, 64, 64, 16, 16]


def test_a_share_below_the_quantile_is_not_enough():
  horizon = change_point(RUNGS, 128, 16, 1, 0.9)
  nine = [[10] * 9 + [1000]] * 3
  eight = [[10] * 8 + [1000] * 2] * 5
  assert follow(horizon, nine)[0] == [16, 16, 16]
  assert follow(horizon, eight)[0] == [16, 32, 64, 128, 128]
  ten_times = change_point(RUNGS, 128, 16, 10, 0.9)  # 0.9 added up ten times is less than 9 in binary
  assert follow(ten_times, [[10] * 9 + [1000]] * 11)[0] == [16] * 11


@settings(max_examples=80)
@given(steps_of_needs, st.integers(1, 4), st.sampled_from([0.5, 0.75, 1.0]))
def test_every_decision_is_the_lowest_rung_that_held_the_share_or_one_up(history, every, holds):
  horizon = change_point(RUNGS, 128, 16, every, holds)
  seen, _ = follow(horizon, history)
  at = 0
  for step in range(len(history)):
    assert seen[step] == RUNGS[at] <= horizon(step)
    if (step + 1) % every == 0:
      window = [need for needs in history[step + 1 - every : step + 1] for need in needs]
      held = [rung for rung in range(at + 1) if sum(need <= RUNGS[rung] for need in window) >= holds * len(window)]
      at = held[0] if held else min(at + 1, len(RUNGS) - 1)


@settings(max_examples=40)
@given(steps_of_needs, st.integers(1, 4), st.integers(0, 30))
def test_a_state_that_went_through_json_goes_on_alike(history, every, stop):
  horizon = change_point(RUNGS, 128, 16, every, 0.9)
  whole, last = follow(horizon, history)
  first, state = follow(horizon, history[:stop])
  rest, state = follow(horizon, history[stop:], json.loads(json.dumps(state)))
  assert (first + rest, state) == (whole, last)


@pytest.mark.parametrize(
  "numbers", [(0, 16, 5, 0.9), (128, 256, 5, 0.9), (128, 16, 0, 0.9), (128, 16, 5, 0.0), (128, 16, 5, 1.1)]
)
def test_impossible_numbers_are_refused(numbers):
  with pytest.raises(ValueError):
    change_point(RUNGS, *numbers)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"buckets": "auto"}, r"horizon\.buckets.*change_point"),
    ({"holds": 0.0}, r"horizon\.holds"),
    ({"window": 1}, r"horizon\.window"),
    ({"threshold": 0.0}, r"horizon\.threshold"),
  ],
)
def test_a_config_that_it_cannot_work_with_is_one_line(changes, words):
  with pytest.raises(InputError, match=words) as error:
    from_config_dict(VALUES | {"horizon": {"kind": "change_point", "max": 128} | changes})
  assert "\n" not in str(error.value)
