"""Alarms over made-up runs: each at its own trouble, once, and none at what a sound run does."""

import pytest

from opd_jax.telemetry.alarms import Alarms

SOUND = {
  "horizon": 64,
  "completion_length": 40.0,
  "truncated": 0.1,
  "repetition": 0.02,
  "student_entropy": 1.0,
  "teacher_entropy": 0.8,
}


def lines_of(rows):
  alarms = Alarms()
  return [line for step, row in enumerate(rows, start=1) for line in alarms({"step": step, **row})]


@pytest.mark.parametrize(
  "trouble, words",
  [
    ({"completion_length": 2.0}, "completions fell from 40"),
    ({"truncated": 1.0}, "no longer end before the horizon"),
    ({"repetition": 0.9}, "repeats itself"),
    ({"student_entropy": 0.01}, "entropy fell"),
  ],
)
def test_each_trouble_is_told_once(trouble, words):
  (line,) = lines_of([SOUND] * 15 + [SOUND | trouble] * 60)
  assert words in line and line.startswith("step ")


def test_a_growing_horizon_and_one_odd_step_are_no_trouble():
  grown = SOUND | {"horizon": 128, "completion_length": 80.0, "truncated": 0.9}
  odd = SOUND | {"completion_length": 1.0, "truncated": 1.0, "repetition": 1.0}
  assert lines_of([SOUND] * 15 + [odd] + [SOUND] * 15 + [grown] * 40) == []


def test_a_student_that_becomes_as_sure_as_its_teacher_is_no_trouble():
  assert lines_of([SOUND] * 15 + [SOUND | {"student_entropy": 0.02, "teacher_entropy": 0.02}] * 60) == []


def test_missing_and_broken_numbers_are_passed_over():
  assert lines_of([{"horizon": 4}, SOUND | {"repetition": None}, SOUND | {"truncated": float("nan")}] * 20) == []
  broken = SOUND | {"teacher_entropy": float("inf"), "completion_length": 1.0}
  assert lines_of([SOUND] * 15 + [broken] * 60) == []


def test_probes_of_the_full_horizon_hide_no_trouble():
  probe = {"horizon": 512, "truncated": 0.9, "probe_cosine": 0.8}
  rows = [SOUND] * 15 + [SOUND | {"repetition": 0.9}] * 60
  (line,) = lines_of([row | probe if step % 5 == 4 else row for step, row in enumerate(rows)])
  assert "repeats itself" in line
