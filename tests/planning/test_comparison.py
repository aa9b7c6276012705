"""Bucket policies added up: against sums by hand, against every ladder, and once as a command on real programs."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opd_jax.config import from_config_dict
from opd_jax.distributed.topologies import find_topology
from opd_jax.horizon import Lengths, Workload, ladder_seconds, used_rungs
from opd_jax.planning.comparison import add_up
from opd_jax.planning.cost_fit import fit_costs
from opd_jax.planning.policies import needed_widths, schedules, spread_widths
from opd_jax.planning.width_costs import WidthCost
from tests.conftest import COMPILED_SOON

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 512

CONFIG = from_config_dict(
  {
    "steps": 200,
    "student": {"path": "s"},
    "teacher": {"path": "t"},
    "data": {"path": "d"},
    "rollout": {"max_prompt": PROMPT, "prompts_per_step": 64},
    "horizon": {"kind": "progressive", "max": 15_360, "start": 1536, "increment": 1536, "every": 20},
  }
)


def compiling(width):
  return 90 + 0.002 * (PROMPT + width)


def turn(slots):
  """One decode step that attends so many slots."""
  return 6e-3 + 2e-6 * slots


def tiles(slots):
  return -(-slots // 128) * 128


def staged(width, turns):
  """A rollout of this width, turn by turn: each attends the fewest of at most eight numbers of slots, in tiles."""
  step = max(128, -(-width // 8))
  ends = [PROMPT - 1 + min(new, width) for new in range(step, width + step, step)]
  stages = ends if len(ends) == 1 else [tiles(end) for end in ends]
  return 0.4 + sum(turn(min(stage for stage in stages if stage >= PROMPT + t)) for t in range(turns))


def whole(width, turns):
  slots = PROMPT - 1 + width
  return 0.4 + turns * turn(slots if width <= 128 else tiles(slots))


def training(width):
  return 1e-3 * (PROMPT + width) + 1e-7 * (PROMPT + width) ** 2


def known(widths, noise=None, writing=whole):
  """Costs of the size that the plan of Qwen3-1.7B <- Qwen3-8B on v5e:4x4 gives. `writing`: as a compiler counts turns,
  at the widest stage, or as they are."""
  noise = noise or (lambda: 1.0)
  return [
    WidthCost(
      width,
      compiling(width) * noise(),
      {turns: writing(width, turns) * noise() for turns in (width // 2, width)},
      training(width) * noise(),
      widest_stage=writing is whole,
    )
    for width in widths
  ]


@pytest.fixture(scope="module")
def comparison():
  widths = spread_widths(needed_widths(CONFIG, Lengths()), 12)
  return add_up(CONFIG, find_topology("v5e:4x4"), known(widths), Lengths())


@pytest.mark.parametrize("writing", [whole, staged])
def test_the_fit_gives_back_what_the_costs_were_made_from(writing):
  """Whether the turns that it saw were counted at the widest stage or run, a rollout costs what its stages cost."""
  fit = fit_costs(known([100, 900, 3000, 15_000], writing=writing), PROMPT)
  for width in (64, 2000, 15_360):
    assert fit.costs.compile(width) == pytest.approx(compiling(width))
    assert fit.costs.update(width) == pytest.approx(training(width))
    for turns in (7, 60, width):
      assert fit.costs.rollout(width, np.array([turns]))[0] == pytest.approx(staged(width, turns))
      assert fit.whole.rollout(width, np.array([turns]))[0] == pytest.approx(whole(width, turns))
  assert all(told.worst < 1e-6 for told in fit.fits.values())


def test_the_fit_says_how_wrong_it_is():
  rng = np.random.default_rng(0)
  fit = fit_costs(known(range(500, 12_500, 1000), lambda: rng.uniform(0.8, 1.2)), PROMPT)
  for told in fit.fits.values():
    assert 0.03 < told.error < 0.3 and told.error <= told.worst


def test_a_width_that_does_not_fit_is_foretold_from_the_others():
  costs = known([1000, 2000, 4000, 8000])
  costs[-1] = dataclasses.replace(costs[-1], update_seconds=None)
  fit = fit_costs(costs, PROMPT)
  assert not costs[-1].fits and fit.costs.update(8000) == pytest.approx(training(8000))


def test_policies_are_added_up_step_by_step(comparison):
  """POPD's 200 steps, one after the other."""
  popd = next(s for s in comparison.schedules if s.name == "POPD")
  horizons = [min(15_360, 1536 + 1536 * (step // 20)) for step in range(200)]
  outcomes = {outcome.policy.name: outcome for outcome in popd.outcomes}
  for name, width_of, turns_of, writing in (
    ("exact lengths", lambda H: H, lambda H: H, staged),
    ("maximum, dynamic stop", lambda H: 15_360, lambda H: H, whole),
    ("maximum, fixed length", lambda H: 15_360, lambda H: 15_360, whole),
    ("maximum, staged cache", lambda H: 15_360, lambda H: H, staged),
    ("powers_of_two", lambda H: min(w for w in (2048, 4096, 8192, 15_360) if w >= H), lambda H: H, staged),
    ("linear(1920)", lambda H: -(-H // 1920) * 1920, lambda H: H, staged),
  ):
    outcome, widths = outcomes[name], [width_of(H) for H in horizons]
    assert outcome.rungs == tuple(sorted(set(widths)))
    assert outcome.compile_seconds == pytest.approx(sum(map(compiling, set(widths))))
    wrote = {(w, H): writing(w, turns_of(H)) for w, H in set(zip(widths, horizons))}
    assert outcome.rollout_seconds == pytest.approx(sum(wrote[key] for key in zip(widths, horizons)))
    assert outcome.update_seconds == pytest.approx(sum(map(training, widths)))
    assert outcome.total == pytest.approx(outcome.compile_seconds + outcome.rollout_seconds + outcome.update_seconds)
    valid, computed = 2 * sum(horizons), sum(w + turns_of(H) for w, H in zip(widths, horizons))
    assert outcome.padding == pytest.approx(1 - valid / computed)
  oracle = compiling(15_360) + 20 * sum(staged(H, H) + training(H) for H in set(horizons))
  assert popd.oracle.total == pytest.approx(oracle)
  assert all(o.regret == pytest.approx(o.total / oracle - 1) for o in popd.outcomes)
  assert all(o.regret >= -1e-9 for o in popd.outcomes)


def test_auto_is_the_best_of_all_ladders_and_near_the_oracle(comparison):
  for schedule in comparison.schedules:
    horizons, workload = schedule.workload.horizons, schedule.workload
    ladders = [
      (*rungs, horizons[-1])
      for count in range(len(horizons))
      for rungs in itertools.combinations(horizons[:-1], count)
      if len(rungs) < 8
    ]
    least = min(ladder_seconds(ladder, workload, comparison.fit.costs).total for ladder in ladders)
    assert schedule.auto(ahead=False).total <= 1.02 * least
    assert schedule.auto(ahead=False).total <= min(o.total for o in schedule.outcomes) * (1 + 1e-9)
    assert schedule.auto(ahead=False).regret <= 0.10
  ahead = {s.name: {o.policy.name: o.ahead for o in s.outcomes} for s in comparison.schedules}
  assert all(seconds.get("auto, compile ahead", 0.0) <= seconds["auto"] for seconds in ahead.values())


def test_every_schedule_is_there_once_and_the_runs_own_leads(comparison):
  assert [s.name for s in comparison.schedules] == ["OPD", "POPD", "TOPD 0.25", "TOPD 0.1"]
  assert comparison.own == "POPD"
  rungs = ",".join(map(str, comparison.schedules[1].auto(comparison.config.horizon.compile_ahead).rungs))
  assert comparison.advice.endswith(f"--config.horizon.buckets={rungs}")
  own = dataclasses.replace(CONFIG, horizon=dataclasses.replace(CONFIG.horizon, kind="truncated", rho=0.5))
  assert next(iter(schedules(own))) == "this run" and len(schedules(own)) == 5


def test_at_most_twelve_widths_are_costed():
  needed = needed_widths(CONFIG, Lengths())
  chosen = spread_widths(needed, 12)
  assert len(needed) > 12 and len(chosen) == 12 and set(chosen) <= set(needed)
  assert (chosen[0], chosen[-1]) == (needed[0], needed[-1])
  for horizon in schedules(CONFIG).values():  # nothing that is used lies outside
    assert used_rungs((*needed,), Workload.of(horizon, 200))[-1] <= chosen[-1]


def test_short_completions_make_a_wide_program_cheaper_only_in_its_rollout():
  """Rows that end by themselves stop the loop early; the update reads its whole width all the same."""
  widths = known([1536, 4000, 8000, 15_360])
  full, short = (
    next(s for s in add_up(CONFIG, find_topology("v5e:4x4"), widths, lengths).schedules if s.name == "OPD")
    for lengths in (Lengths(), Lengths((100, 200), 64))
  )
  at_full, at_short = (next(o for o in s.outcomes if o.policy.name == "maximum, dynamic stop") for s in (full, short))
  assert at_short.update_seconds == at_full.update_seconds
  assert at_short.rollout_seconds == pytest.approx(200 * whole(15_360, 200))  # of 64 rows one is long, surely
  assert at_short.padding == pytest.approx(1 - 2 * 150 / (200 + 15_360))


def plan(*arguments):
  environment = {**os.environ, "XLA_FLAGS": COMPILED_SOON}
  command = [sys.executable, "-m", "opd_jax.plan", *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_command_measures_two_widths_and_answers_in_json(tiny_config):
  horizon = ["--config.horizon.kind=full", "--config.horizon.max=4", "--config.horizon.buckets=auto"]
  done = plan(f"--config={tiny_config}", "--topology=cpu:1", "--compare-buckets", "--json", *horizon)
  assert done.returncode == 0, done.stderr
  answer = json.loads(done.stdout)
  assert [width["width"] for width in answer["widths"]] == [1, 4] and all(width["fits"] for width in answer["widths"])
  for schedule in answer["schedules"]:
    assert sum(schedule["steps"]) == answer["steps"] == 4
    for policy in schedule["policies"]:
      parts = policy["compile_seconds"] + policy["rollout_seconds"] + policy["update_seconds"]
      assert policy["total"] == pytest.approx(parts) and policy["programs"] == 2 * len(policy["rungs"])
      assert policy["compile_seconds"] > 0 and policy["rollout_seconds"] > 0 and policy["update_seconds"] > 0
  assert answer["advice"].endswith("--config.horizon.buckets=4")


@pytest.mark.parametrize("content, words", [(None, "cannot be read"), ("[1, 0]", "list of positive integers")])
def test_bad_lengths_are_one_line(tiny_config, tmp_path, content, words):
  path = tmp_path / "lengths.json"
  if content is not None:
    path.write_text(content)
  done = plan(f"--config={tiny_config}", "--topology=cpu:1", "--compare-buckets", f"--lengths={path}")
  assert done.returncode == 2 and done.stdout == ""
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  assert len(lines) == 1 and words in lines[0]
