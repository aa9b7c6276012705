"""Marks of k answers against what the definitions say, counted out."""

import itertools
import statistics

import numpy as np
import pytest

from opd_jax.evaluation.graders import extract
from opd_jax.evaluation.marks import Mark, describe, majority, pass_at

RNG = np.random.default_rng(0)
CORRECT = (RNG.random((40, 6)) < RNG.beta(0.4, 0.4, (40, 1))).astype(float)  # questions are hard or easy
# What the answers say: right ones all the same, wrong ones one of three, some nothing.
SAYS = [["7" if right else RNG.choice(["1", "2", "3", ""]) for right in row] for row in CORRECT]


@pytest.mark.parametrize("tries", range(1, 7))
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_answer(tries):
  expected = [np.mean([any(chosen) for chosen in itertools.combinations(row, tries)]) for row in CORRECT]
  np.testing.assert_allclose(pass_at(CORRECT, tries), expected, atol=1e-12)


def test_pass_at_k_of_many_answers_needs_no_factorial():
  correct = np.zeros((3, 2000))
  correct[1, 0] = correct[2] = 1
  np.testing.assert_allclose(pass_at(correct, 1000), [0, 0.5, 1], atol=1e-9)


def test_the_majority_of_a_tie_is_what_a_fair_draw_would_give():
  """The expectation over all ways to break the tie, by enumeration of the answers that most responses give."""
  expected = []
  for right, says in zip(CORRECT, SAYS):
    named = [text for text in says if text]
    winners = statistics.multimode(named)
    expected.append(np.mean([dict(zip(says, right))[winner] for winner in winners]) if named else 0)
  np.testing.assert_allclose(majority(CORRECT, SAYS), expected)


def test_a_majority_by_hand():
  cases = [
    ([1, 0, 0, 1], ["a", "b", "c", "a"], 1),
    ([1, 0, 0, 0], ["a", "b", "b", ""], 0),
    ([1, 1, 0, 0], ["a", "a", "b", "b"], 0.5),
    ([0, 0, 0, 1], ["", "", "", "d"], 1),  # three that say nothing do not outvote one
    ([0, 0, 0, 0], ["", "", "", ""], 0),
    ([1, 0, 1, 0], ["a", "a", "a", "b"], 2 / 3),  # a grader that reads more than the answer
  ]
  right, says, expected = zip(*cases)
  np.testing.assert_allclose(majority(np.array(right, float), says), expected)


def test_intervals_are_those_of_one_number_a_question():
  """A cluster-robust standard error, as a regression on a constant gives it, with the small-sample factor."""
  row = describe(CORRECT, SAYS)
  n, k = CORRECT.shape
  residuals = CORRECT - CORRECT.mean()
  clustered = np.sqrt((residuals.sum(axis=1) ** 2).sum()) / (n * k) * np.sqrt(n / (n - 1))
  assert row["accuracy"] == pytest.approx(CORRECT.mean()) and row["stderr"] == pytest.approx(clustered)
  normal = statistics.NormalDist(CORRECT.mean(), clustered)
  assert (row["low"], row["high"]) == pytest.approx((normal.inv_cdf(0.025), normal.inv_cdf(0.975)))
  naive = CORRECT.std(ddof=1) / np.sqrt(CORRECT.size)
  assert row["stderr"] > 1.5 * naive  # answers to one question go together
  assert list(row["pass_at"]) == list(row["pass_at_stderr"]) == ["1", "2", "4", "6"]
  assert row["pass_at"]["1"] == pytest.approx(row["accuracy"])
  assert row["pass_at_stderr"]["1"] == pytest.approx(row["stderr"])
  assert row["pass_at_stderr"]["4"] == pytest.approx(statistics.stdev(pass_at(CORRECT, 4)) / np.sqrt(n))
  assert row["maj_stderr"] == pytest.approx(statistics.stdev(majority(CORRECT, SAYS)) / np.sqrt(n))


def test_an_interval_stays_within_what_can_be_and_one_question_has_none():
  mark = Mark.of(np.array([1.0] * 9 + [0.0]))
  assert mark.value == 0.9 and mark.low < 0.9 and mark.high == 1.0
  assert Mark.of(np.array([0.25])) == Mark(0.25, None, None, None)


@pytest.mark.parametrize(
  ("kind", "alike"),
  [
    ("math", ["so \\boxed{\\dfrac{1}{2}}", "The answer is 1/2.", "\\boxed{x = 0.50}", "So it is .5"]),
    ("math", ["We are done. It is $x = \\frac{1}{2}$.", "Hence \\(1/2\\) of 4.", "</think>That makes 0.5 in all"]),
    ("math", ["\\boxed{1{,}200}", "\\boxed{1200.0}", "Answer: $1,200$"]),
    ("math", ["\\boxed{-\\frac{3}{4}}", "\\boxed{-0.75}", "\\boxed{-3/4}"]),
    ("gsm8k", ["#### 1,200", "\\boxed{1200}", "that makes $1200.00"]),
    ("choice", ["(B)", "The answer is B.", "\\boxed{\\text{B}}"]),
    ("exact", ["1=1;  2=3;", "<think>?</think>1=1; 2=3;\n"]),
  ],
)
def test_responses_that_give_one_answer_vote_together(kind, alike):
  votes = {extract(kind, response) for response in alike}
  assert len(votes) == 1 and votes != {""}


@pytest.mark.parametrize(
  ("kind", "response"),
  [("math", ""), ("math", "What is 42?"), ("gsm8k", "no number"), ("choice", "Banana"), ("exact", "")],
)
def test_a_response_without_an_answer_has_no_vote(kind, response):
  assert extract(kind, response) == ""


def test_different_answers_vote_apart():
  texts = [
    "\\boxed{1/2}",
    "\\boxed{-1/2}",
    "\\boxed{2}",
    "\\boxed{1/0}",
    "\\boxed{(1,2)}",
    "\\boxed{" + "1" * 100 + "}",
  ]
  assert len({extract("math", text) for text in texts}) == len(texts)
