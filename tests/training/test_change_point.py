"""Whole runs whose responses are cut where the teacher's margin drops."""

import json

import jax
import numpy as np
import pytest

from opd_jax.command_line import load_config
from opd_jax.errors import InputError
from opd_jax.training import open_run, train
from tests.conftest import timeless

FLAGS = ["kind=change_point", "start=8", "every=2", "buckets=8,16", "window=2", "threshold=0.6", "holds=0.5"]


def load(config_file, *flags):
  return load_config(config_file, [f"--config.{flag}" for flag in (*(f"horizon.{f}" for f in FLAGS), *flags)])


def run(config, workdir):
  opened = open_run(config, workdir, jax.devices()[:1])
  train(opened)
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return opened, lines


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
  return run(load(tiny_config, "steps=8"), tmp_path_factory.mktemp("cut"))


def test_the_horizon_is_that_of_the_cuts_that_its_rows_tell_of(whole):
  """The rule, from the rows alone."""
  _, lines = whole
  rungs, at = (8, 16), 0
  for step, line in enumerate(lines):
    assert line["horizon"] == line["bucket"] == rungs[at]
    assert 0 <= line["cut"] <= 1 and 0 <= line["cut_tokens"] < 1
    held = line["needed_by_rung"]
    assert held == sorted(held) and held[at] == held[-1]  # what needs more than is seen needs more than any rung
    if step % 2:
      mean = np.mean([lines[step - 1]["needed_by_rung"], held], axis=0)
      enough = [rung for rung in range(at + 1) if mean[rung] >= 0.5]
      at = enough[0] if enough else min(at + 1, 1)
  assert any(line["cut_tokens"] > 0 for line in lines) and len({line["horizon"] for line in lines}) > 1


def test_it_compiles_each_rung_once(whole):
  opened, lines = whole
  compiled = [(c.program, c.bucket) for c in opened.table.compiles if c.program in ("rollout", "update")]
  used = {(name, line["bucket"]) for name in ("rollout", "update") for line in lines}
  assert len(compiled) == len(set(compiled)) == 4 and used == set(compiled)
  assert lines[-1]["unplanned_compiles"] == 0


def test_micro_batches_cut_alike_and_a_stop_changes_nothing(whole, tiny_config, tmp_path):
  """Stopped within a window of two steps, so that the sums of the checkpoint count. The gradient of two halves is the
  whole one up to rounding, and so are the first steps' numbers."""
  _, expected = whole
  run(load(tiny_config, "steps=3"), tmp_path / "stopped")
  _, lines = run(load(tiny_config, "steps=8"), tmp_path / "stopped")

  assert timeless(lines) == timeless(expected)
  _, halves = run(load(tiny_config, "steps=2", "optimizer.micro_batches=2"), tmp_path / "halves")
  for line, same in zip(halves, expected):
    assert line["needed_by_rung"] == same["needed_by_rung"] and line["cut"] == same["cut"]
    np.testing.assert_allclose([line["loss"], line["grad_norm"]], [same["loss"], same["grad_norm"]], rtol=1e-4)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["objective.select_by=divergence"], r"objective\.select_by.*token by token"),
    (["objective.dataset_share=0.5", "data.answer_field=answer"], r"objective\.dataset_share.*token by token"),
  ],
)
def test_what_it_cannot_be_combined_with_is_said_before_anything_is_made(tiny_config, tmp_path, flags, words):
  with pytest.raises(InputError, match=words):
    open_run(load(tiny_config, *flags), tmp_path / "w", jax.devices()[:1])
  assert not (tmp_path / "w").exists()
