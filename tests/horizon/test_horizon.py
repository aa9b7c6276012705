"""Schedules and ladders against their definitions, over random arguments."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import horizon

lengths = st.integers(1, 20_000)


@given(lengths, st.integers(0, 1000))
def test_full_is_the_maximum_at_every_step(T, step):
  assert horizon.full(T)(step) == T


@given(lengths, st.fractions(min_value="1/1000", max_value=1), st.integers(0, 1000))
def test_truncated_is_the_smallest_integer_not_below_rho_T(T, rho, step):
  from fractions import Fraction

  H = horizon.truncated(T, float(rho))(step)
  assert 1 <= H <= T
  assert H - 1 < Fraction(float(rho)) * T + Fraction(1, 10**8)
  assert H >= Fraction(float(rho)) * T - Fraction(1, 10**8)


def test_truncated_reads_decimal_fractions_as_people_do():
  assert horizon.truncated(15_360, 0.25)(0) == 3_840
  assert horizon.truncated(15_360, 0.1)(0) == 1_536
  assert horizon.truncated(30, 0.1)(7) == 3


@given(lengths, st.integers(1, 500), st.integers(1, 500), st.integers(1, 50), st.integers(0, 2000))
def test_progressive_is_the_papers_formula(T, start, increment, every, step):
  start = min(start, T)
  H = horizon.progressive(T, start, increment, every)
  assert H(step) == min(T, start + increment * (step // every))
  assert H(step) <= H(step + 1) <= T


@given(st.sets(st.integers(1, 5000), min_size=1, max_size=12), st.integers(-5, 6000))
def test_bucket_is_the_smallest_that_holds_the_horizon(rungs, H):
  ladder = tuple(sorted(rungs))
  if 1 <= H <= ladder[-1]:
    assert horizon.bucket_for(H, ladder) == min(rung for rung in ladder if rung >= H)
  else:
    with pytest.raises(ValueError, match=f"horizon {H} is"):
      horizon.bucket_for(H, ladder)


@given(lengths, st.integers(1, 64))
def test_powers_of_two_end_at_the_maximum_and_ascend(T, smallest):
  ladder = horizon.powers_of_two(T, smallest)
  assert ladder[-1] == T and list(ladder) == sorted(set(ladder))
  assert all(b == 2 * a for a, b in itertools.pairwise(ladder[:-1]))


def test_distinct_lists_each_horizon_once_in_order():
  assert list(horizon.progressive(50, 10, 15, 4).distinct(20)) == [10, 25, 40, 50]
  assert list(horizon.full(9).distinct(100)) == [9]


@pytest.mark.parametrize(
  "build",
  [
    lambda: horizon.full(0),
    lambda: horizon.truncated(10, 0.0),
    lambda: horizon.truncated(10, 1.5),
    lambda: horizon.progressive(10, 11, 1, 1),
    lambda: horizon.progressive(10, 1, 0, 1),
    lambda: horizon.progressive(10, 1, 1, 0),
  ],
)
def test_impossible_schedules_are_refused(build):
  with pytest.raises(ValueError):
    build()


def test_stateless_horizons_keep_no_state():
  H = horizon.progressive(50, 10, 15, 4)
  assert H.init() is None and H.update(H.init(), {"kl": 1.0}) is None
  assert H(5, H.init()) == 25
