"""Ladders: the rules against their definitions, the search against every ladder there is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax import horizon
from opd_jax.horizon import Costs, Lengths, Workload, best_ladder, ladder_rule, ladder_seconds

maxima = st.integers(1, 20_000)


@given(maxima, st.integers(1, 3000))
def test_linear_rungs_are_the_multiples_of_the_step(T, step):
  ladder = horizon.linear(T, step)
  assert ladder == ladder_rule(f"linear({step})")(T)
  assert ladder[-1] == T and all(rung == (k + 1) * step for k, rung in enumerate(ladder[:-1]))
  assert T - (ladder[-2] if len(ladder) > 1 else 0) <= step


@given(maxima, st.integers(11, 400))
def test_geometric_rungs_grow_by_the_ratio_and_no_more(T, tenths):
  ratio = tenths / 10
  ladder = ladder_rule(f"geometric({ratio})")(T)
  assert ladder[-1] == T and list(ladder) == sorted(set(ladder)) and ladder[0] == min(16, T)
  for below, above in itertools.pairwise(ladder[:-1]):
    assert above == -(-below * tenths // 10)  # in integers: the smallest that is not below


def test_a_ratio_of_two_is_powers_of_two():
  assert ladder_rule("geometric(2)")(100) == ladder_rule("powers_of_two")(100) == (16, 32, 64, 100)


def by_hand(ladder, workload, compile_seconds, rollout, update):
  """A run as it goes: step after step in plain Python, each compile when it is first needed."""
  total, compiled = 0.0, set()
  for H, steps, turns in zip(workload.horizons, workload.steps, workload.turns):
    for _ in range(steps):
      width = min(rung for rung in ladder if rung >= H)
      if width not in compiled:
        compiled.add(width)
        total += compile_seconds(width)
      total += rollout(width, turns) + update(width)
  return total


def ahead_by_hand(ladder, workload, compile_seconds, rollout, update):
  """The same with one compiler in the background, which does the used rungs one after the other from the start."""
  used = sorted({min(rung for rung in ladder if rung >= H) for H in workload.horizons})
  ready = dict(zip(used, itertools.accumulate(compile_seconds(width) for width in used)))
  clock = 0.0
  for H, steps, turns in zip(workload.horizons, workload.steps, workload.turns):
    width = min(rung for rung in ladder if rung >= H)
    for _ in range(steps):
      clock = max(clock, ready[width]) + rollout(width, turns) + update(width)
  return clock


positive = st.floats(0.0, 100.0)


@st.composite
def cases(draw):
  horizons = sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=8)))
  steps = [draw(st.integers(1, 30)) for _ in horizons]
  turns = [H * draw(st.floats(0.1, 1.0)) for H in horizons]
  c0, c1, r0, r1, r2, u1, u2 = (draw(positive) for _ in range(7))
  functions = (
    lambda width: 10 * c0 + 0.1 * c1 * width,
    lambda width, turns: r0 + turns * (r1 + 0.01 * r2 * width),
    lambda width: u1 * width + 0.01 * u2 * width**2,
  )
  return Workload(tuple(horizons), tuple(steps), tuple(turns), tuple(turns)), functions


@settings(max_examples=60)
@given(cases())
def test_the_search_finds_the_best_of_all_ladders(case):
  """All ladders of up to eight buckets, their seconds added up step by step."""
  workload, functions = case
  longest = workload.horizons[-1]
  ladders = [
    (*rungs, longest)
    for count in range(len(workload.horizons))
    for rungs in itertools.combinations(workload.horizons[:-1], count)
  ]
  costs = Costs(*functions)
  for ahead, seconds in ((False, by_hand), (True, ahead_by_hand)):
    found = best_ladder(workload, costs, ahead=ahead)
    least = min(seconds(ladder, workload, *functions) for ladder in ladders)
    assert seconds(found, workload, *functions) <= least * (1 + 1e-9) + 1e-9
    told = ladder_seconds(found, workload, costs)
    assert (told.ahead if ahead else told.total) == pytest.approx(seconds(found, workload, *functions))


@settings(max_examples=30)
@given(cases(), st.sets(st.integers(1, 400), max_size=8))
def test_rungs_that_are_no_horizon_never_help(case, rungs):
  workload, functions = case
  ladder = tuple(sorted({*rungs, workload.horizons[-1]}))
  best = by_hand(best_ladder(workload, Costs(*functions)), workload, *functions)
  assert best <= by_hand(ladder, workload, *functions) * (1 + 1e-9) + 1e-9


def test_many_horizons_are_thinned_at_little_loss():
  """2,000 different horizons, of which a part is looked at, against the same search over all of them."""
  workload = Workload.of(horizon.progressive(20_000, 10, 10, 1), 2000)
  costs = Costs(lambda width: 3000.0, lambda width, turns: turns * (0.1 + 1e-5 * width), lambda width: 0.5 * width)
  exact = [0.0]  # the recursion again, in plain numpy
  H = np.array(workload.horizons, float)
  for j in range(len(H)):
    steps = np.cumsum((H[: j + 1] * (0.1 + 1e-5 * H[j]) + 0.5 * H[j])[::-1])[::-1]
    exact.append(3000.0 + (np.array(exact[: j + 1]) + steps).min())
  found = ladder_seconds(best_ladder(workload, costs), workload, costs).total
  assert exact[-1] * (1 - 1e-9) <= found <= 1.02 * exact[-1]
  ahead = ladder_seconds(best_ladder(workload, costs, ahead=True), workload, costs).ahead
  assert ahead <= found  # hidden compiles cannot make the best run longer


def test_auto_is_within_a_tenth_of_no_padding_for_popd():
  """POPD at T = 15,360 under the default costs: an oracle pads nothing, and compiles only the widest program."""
  schedule = horizon.progressive(15_360, 1536, 1536, 20)
  workload, costs = Workload.of(schedule, 200), horizon.default_costs(15_360, 512)
  training = sum(
    steps * float(costs.step(H, [turns])[0])
    for H, steps, turns in zip(workload.horizons, workload.steps, workload.turns)
  )
  alone = ladder_seconds(horizon.auto_ladder(schedule, 200, 512), workload, costs)
  assert alone.total <= 1.1 * (costs.compile(15_360) + training)
  # With a compiler in the background nobody waits but for the first program.
  ahead = ladder_seconds(horizon.auto_ladder(schedule, 200, 512, ahead=True), workload, costs)
  assert ahead.ahead <= 1.1 * (costs.compile(1536) + training) and ahead.ahead <= alone.ahead


def test_auto_ends_at_the_maximum_and_knows_the_schedule():
  assert horizon.auto_ladder(horizon.truncated(1000, 0.1), 50, 16) == (100, 1000)
  assert horizon.auto_ladder(horizon.full(1000), 50, 16) == (1000,)
  short, long = (horizon.auto_ladder(horizon.progressive(1000, 100, 100, every), 10 * every, 16) for every in (1, 5000))
  assert short == (1000,)  # each width for one step: no second compile pays
  assert long == tuple(range(100, 1001, 100))  # each for 5,000 steps: no padding does


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=4)


@given(lengths, st.integers(1, 3), st.integers(1, 60))
def test_expected_lengths_are_the_mean_over_all_draws(observed, rows, H):
  draws = list(itertools.product(observed, repeat=rows))
  given_lengths = Lengths(tuple(observed), rows)
  longest = math.fsum(min(H, max(draw)) for draw in draws) / len(draws)
  assert given_lengths.turns(np.array([H]))[0] == pytest.approx(longest)
  assert given_lengths.tokens(np.array([H]))[0] == pytest.approx(math.fsum(min(H, n) for n in observed) / len(observed))
  assert Lengths(rows=rows).turns(np.array([H]))[0] == H


@pytest.mark.parametrize(
  "text, words",
  [
    ("powers_of_three", "auto, powers_of_two, linear"),
    ("linear", "linear takes a whole number"),
    ("linear()", "linear(512)"),
    ("linear(1.5)", "a whole number of tokens"),
    ("linear(0)", "at least 1"),
    ("geometric(x)", "geometric takes a number"),
    ("geometric(1)", "above 1"),
    ("geometric(nan)", "above 1"),
    ("powers_of_two(3)", "no argument"),
    ("", "it must be auto"),
    ("linear(5", "it must be auto"),
  ],
)
def test_a_rule_that_is_none_is_refused(text, words):
  with pytest.raises(ValueError, match=r"it must|takes") as refused:
    ladder_rule(text)
  assert words in str(refused.value) and "\n" not in str(refused.value)
