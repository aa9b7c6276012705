"""The horizon that probes: its rule written out over whole histories of cosines, and what is compiled for it."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.config import from_config_dict
from opd_jax.errors import InputError
from opd_jax.horizon import probe
from opd_jax.training.programs import first_needs

RUNGS = (16, 32, 64, 128)
VALUES = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}


def follow(horizon, cosines, steps, state=None, first=0):
  """(horizon, prefix) of each step and the last state; a probe is answered by `cosines[prefix]` or what it returns."""
  state, seen = horizon.init() if state is None else state, []
  for step in range(first, steps):
    prefix = horizon.prefix(step, state)
    seen.append((horizon(step, state), prefix))
    diagnostics = {"loss": 1.0}
    if prefix is not None:
      diagnostics["probe_cosine"] = cosines(step, prefix)
    state = horizon.update(state, diagnostics)
  return seen, state


def test_it_settles_on_the_lowest_rung_that_agrees_and_looks_below_it():
  """Whose cosines never change: 16 and 32 do not agree, 64 does."""
  cosine_of = {16: 0.5, 32: 0.8, 64: 0.95}
  seen, _ = follow(probe(RUNGS, 128, 16, 3, 0.9), lambda step, prefix: cosine_of[prefix], 21)
  assert [H for H, _ in seen] == [16, 16, 128, 32, 32, 128] + [64, 64, 128] * 5
  assert [prefix for _, prefix in seen if prefix] == [16, 32, 64, 32, 64, 32, 64]


def test_a_probe_that_finds_no_gradient_decides_nothing():
  seen, state = follow(probe(RUNGS, 128, 16, 2, 0.9), lambda step, prefix: math.nan, 10)
  assert [H for H, _ in seen] == [16, 128] * 5 and state == {"rung": 0, "looks": 0}


histories = st.lists(st.floats(-1, 1), min_size=1, max_size=25)


@settings(max_examples=80)
@given(histories, st.integers(1, 4), st.lists(st.integers(1, 200), min_size=2, max_size=5, unique=True))
def test_it_moves_one_rung_at_a_probe_towards_the_lowest_that_agrees(history, every, lengths):
  rungs = tuple(sorted(lengths))
  horizon = probe(rungs, rungs[-1], rungs[0], every, 0.9)
  seen, _ = follow(horizon, lambda step, prefix: history[step // every], every * len(history))
  at = 0
  for step, (H, prefix) in enumerate(seen):
    assert (prefix is not None) == ((step + 1) % every == 0)
    if prefix is None:
      assert H == rungs[at] <= horizon(step)
      continue
    assert H == rungs[-1] and prefix in (rungs[at], rungs[max(at - 1, 0)]) and prefix < rungs[-1]
    agrees = history[step // every] >= 0.9
    if prefix == rungs[at]:
      at += not agrees
    else:
      at -= agrees


@settings(max_examples=40)
@given(histories, st.integers(1, 3), st.integers(0, 60))
def test_a_state_that_went_through_json_goes_on_alike(history, every, stop):
  horizon = probe(RUNGS, 128, 16, every, 0.9)
  steps = every * len(history)
  whole, last = follow(horizon, lambda step, prefix: history[step // every], steps)
  stop = min(stop, steps)
  first, state = follow(horizon, lambda step, prefix: history[step // every], stop)
  rest, state = follow(horizon, lambda step, prefix: history[step // every], steps, json.loads(json.dumps(state)), stop)
  assert (first + rest, state) == (whole, last)


def test_what_is_planned_is_the_fastest_growth_and_the_probes():
  horizon = probe((8, 16, 32, 64), 64, 16, 3, 0.9)
  assert horizon.rungs == (16, 32, 64)
  assert [horizon(step) for step in range(9)] == [16, 16, 64, 32, 32, 64, 64, 64, 64]
  planned = [horizon.planned(step, 7, {"rung": 0, "looks": 0}) for step in range(7, 12)]
  assert planned == [(16, 16), (64,), (16, 32), (16, 32), (64,)]


def test_programs_are_needed_in_the_order_of_a_run_and_after_a_resume_of_its_state():
  horizon = {"kind": "probe", "max": 64, "start": 16, "every": 3, "buckets": (16, 32, 64)}
  config = from_config_dict(VALUES | {"steps": 30, "horizon": horizon})
  needs = {("update", 16): 0, ("probe", 64): 2, ("update", 32): 3, ("update", 64): 6}
  assert list(first_needs(config).items()) == list(needs.items())
  resumed = first_needs(config, 20, {"rung": 1, "looks": 0})
  assert list(resumed.items()) == [(("probe", 64), 20), (("update", 32), 21), (("update", 64), 21)]
  short = dataclasses.replace(config, steps=5)
  assert list(first_needs(short)) == [("update", 16), ("probe", 64), ("update", 32)]


@pytest.mark.parametrize(
  "numbers", [(0, 16, 5, 0.9), (128, 256, 5, 0.9), (128, 16, 0, 0.9), (128, 16, 5, 0.0), (128, 16, 5, 1.1)]
)
def test_impossible_numbers_are_refused(numbers):
  with pytest.raises(ValueError):
    probe(RUNGS, *numbers)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"buckets": "auto"}, r"horizon\.buckets.*probe"),
    ({"buckets": (128,)}, "no bucket from start 16 on is below the maximum 128"),
    ({"agreement": 1.5}, r"horizon\.agreement"),
    ({"start": 200}, r"horizon\.start"),
  ],
)
def test_a_config_that_it_cannot_work_with_is_one_line(changes, words):
  with pytest.raises(InputError, match=words) as error:
    from_config_dict(VALUES | {"horizon": {"kind": "probe", "max": 128} | changes})
  assert "\n" not in str(error.value)
