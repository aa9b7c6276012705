"""Problems are checked by reading their text again and adding up in plain Python."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax.arithmetic import Recipe, pretraining, task
from opd_jax.arithmetic.tokenizer import END_ID, VOCABULARY

DIGITS = st.lists(st.integers(0, 4), min_size=24, max_size=24)


def read_prompt(text):
  assert re.fullmatch(r"([a-x][0-4])+:", text)
  return re.findall(r"([a-x])([0-4])", text)


def read_chain(text):
  units = re.findall(r"([a-x])([0-4])=([0-4])", text)
  assert "".join(f"{letter}{digit}={total}" for letter, digit, total in units) == text
  return units


def test_a_problem_by_hand():
  digits = np.array([3, 1, 4])
  assert task.prompt(digits) == "a3b1c4:"
  assert task.chain(digits, np.array([3, 4, 3])) == "a3=3b1=4c4=3"
  assert task.prompt(digits, first=21) == "v3w1x4:"


def test_answers_are_right_and_tell_the_letters_in_order():
  for row in task.problems(50, (1, 2)):
    given_digits, units = read_prompt(row["prompt"]), read_chain(row["answer"])
    assert [letter for letter, _ in given_digits] == list("abcdefghijklmnopqrstuvwx")
    total = 0
    for (letter, digit), unit in zip(given_digits, units, strict=True):
      total = (total + int(digit)) % 5
      assert unit == (letter, digit, str(total))


def test_problems_are_a_function_of_count_and_seed():
  assert task.problems(8, (0, 1)) == task.problems(8, (0, 1))
  prompts = [row["prompt"] for seed in ((0, 1), (0, 2), (1, 1)) for row in task.problems(8, seed)]
  assert len(set(prompts)) == len(prompts)


@given(DIGITS, st.lists(st.booleans(), min_size=24, max_size=24))
def test_a_mistake_is_carried_on(digits, mistakes):
  expected, total = [], 0
  for digit, mistaken in zip(digits, mistakes):
    total = (total + digit + mistaken) % 5
    expected.append(total)
  assert task.running_sums(np.array([digits]), np.array([mistakes]))[0].tolist() == expected


def test_mistakes_strike_where_the_variant_says():
  digits_bn = task.draw_digits(np.random.default_rng(0), 2000)
  uniform_bn = task.draw_mistakes("uniform", digits_bn, 0.6, np.random.default_rng(1))
  late_bn = task.draw_mistakes("late", digits_bn, 0.6, np.random.default_rng(1))
  assert not uniform_bn[digits_bn != 3].any() and not late_bn[:, :16].any()
  assert (late_bn[:, 16:] == (digits_bn[:, 16:] == 3)).all()
  early, late = (uniform_bn[:, part][digits_bn[:, part] == 3].mean() for part in (slice(16), slice(16, 24)))
  assert early == pytest.approx(0.6, abs=0.03) and late == pytest.approx(0.6, abs=0.03)


def texts(batch):
  return ["".join(VOCABULARY[i] for i in row) for row in batch.tokens_bt]


def test_short_problems_stand_apart_as_far_as_long_ones():
  recipe = Recipe(window_rows=400)
  batch = pretraining.window_batch(recipe, np.random.default_rng(0))
  firsts, distances = set(), set()
  for text, positions in zip(texts(batch), batch.positions_bt, strict=True):
    assert text.endswith("<eos>") and len(positions) == len(text) - len("<eos>") + 1
    head, tail = text[: batch.prompt], text.removesuffix("<eos>")[batch.prompt :]
    total = 0
    for (letter, digit), unit in zip(read_prompt(head), read_chain(tail), strict=True):
      total = (total + int(digit)) % 5
      assert unit == (letter, digit, str(total))
      distances.add(int(positions[text.index(letter, batch.prompt)] - positions[text.index(letter) + 1]))
    firsts.add(text[0])
    steps = np.diff(positions)
    assert positions[0] == 0 and (np.delete(steps, batch.prompt - 1) == 1).all()
  assert firsts == set("abcdefghijklmnopqrs")
  # in a whole problem the letter of unit i stands at 49 + 4 i, and its digit in the prompt at 2 i + 1
  assert {49 + 4 * i - (2 * i + 1) for i in range(24)} <= distances and max(distances) == 94


def test_whole_problems_follow_the_rule_of_the_variant():
  recipe = Recipe(rows=200)
  for variant, lowest, highest in ((None, 1.0, 1.0), ("uniform", 0.0, 0.2), ("late", 0.08, 0.3)):
    batch = pretraining.whole_batch(recipe, np.random.default_rng(0), variant)
    assert batch.tokens_bt.shape == (200, 49 + 97) and batch.prompt == 49
    assert (batch.tokens_bt[:, -1] == END_ID).all()
    assert (batch.positions_bt == np.arange(146)).all()
    right = 0
    for text in texts(batch):
      digits = np.array([[int(digit) for _, digit in read_prompt(text[:49])]])
      chain = task.chain(digits[0], np.cumsum(digits, axis=1)[0] % 5)
      right += text[49:] == chain + "<eos>"
    assert lowest <= right / 200 <= highest
