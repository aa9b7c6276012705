"""Programs compiled before they are needed, and rows that come one step late without a number changed."""

import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax.command_line import load_config
from opd_jax.training import open_run, train
from opd_jax.training.ahead import too_late
from opd_jax.training.programs import first_needs


@given(
  st.lists(st.integers(1, 50), min_size=1, max_size=8, unique=True).map(sorted),
  st.floats(0.01, 10.0),
  st.floats(0.01, 10.0),
)
def test_what_is_left_to_the_background_is_ready_in_time_and_no_less_would_be(growths, step, compiling):
  def stalls(before):
    """Follows the clock: a compiler that works through its queue from the first step on."""
    ready = 0.0
    for steps in growths[before:]:
      ready += 1.5 * compiling
      if ready > steps * step:
        return True
    return False

  before = too_late(growths, step, compiling)
  assert not stalls(before) and all(stalls(fewer) for fewer in range(before))


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def run(tiny_config, workdir, *flags):
  opened = open_run(load_config(tiny_config, list(flags)), workdir, jax.devices()[:1])
  train(opened)
  return opened, rows(workdir)


@pytest.fixture(scope="module")
def ahead(tiny_config, tmp_path_factory):
  return run(tiny_config, tmp_path_factory.mktemp("ahead"))


@pytest.fixture(scope="module")
def in_the_steps(tiny_config, tmp_path_factory):
  return run(tiny_config, tmp_path_factory.mktemp("behind"), "--config.horizon.compile_ahead=false")


def test_a_schedule_that_outruns_the_compiler_compiles_before_the_first_step(ahead):
  """It grows at every step, of milliseconds: nothing is compiled or waited for after the first."""
  opened, (first, *later) = ahead
  assert opened.config.ladder() == (8, 16) and {row["bucket"] for row in later} == {8, 16}
  assert first["seconds_compile_wait"] > 0
  assert all(row["seconds_compile"] == row["seconds_compile_wait"] == 0 for row in later)
  assert all("compiles_new" not in row for row in later)


def test_every_compile_is_recorded_once(ahead):
  opened, recorded = ahead
  new = [compile for row in recorded for compile in row.get("compiles_new", [])]
  canaries = [("canary", 16)] * 2  # of two architectures
  listed = [*canaries, ("decode_layout", 0), ("rollout", 8), ("rollout", 16), ("update", 8), ("update", 16)]
  assert sorted((compile["program"], compile["bucket"]) for compile in new) == listed
  assert all(compile["seconds"] > 0 for compile in new) and any(compile["ahead"] for compile in new)
  assert recorded[-1]["compiles"] == len(new) == len(opened.table.compiles)
  assert recorded[-1]["unplanned_compiles"] == 0


def test_without_it_the_step_that_grows_pays(in_the_steps):
  opened, recorded = in_the_steps
  assert not any(compile.ahead for compile in opened.table.compiles)
  for row, before in zip(recorded, [None, *recorded]):
    grows = before is None or row["bucket"] != before["bucket"]
    assert (row["seconds_compile"] > 0) == grows and row["seconds_compile_wait"] == 0
    of_steps = {c["bucket"] for c in row.get("compiles_new", []) if c["program"] in ("rollout", "update")}
    assert of_steps == ({row["bucket"]} if grows else set())


def test_when_a_program_is_compiled_changes_no_number(ahead, in_the_steps):
  timed = ("seconds_", "cpu_seconds", "compiles", "host_memory")

  def numbers(recorded):
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in recorded]

  assert numbers(ahead[1]) == numbers(in_the_steps[1])


def test_first_needs_after_a_resume(tiny_config):
  config = load_config(tiny_config, [])  # horizons 4 8 12 16
  assert list(first_needs(config).items()) == [(("update", 8), 0), (("update", 16), 2)]
  assert list(first_needs(config, 3).items()) == [(("update", 16), 3)]
  assert first_needs(config, 4) == {}
