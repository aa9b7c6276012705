"""The three failures of sampled-token distillation on a pair made to have them, and what three remedies do to each."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import counting_language as language
from benchmarks.evidence import figure
from benchmarks.evidence.distillation import Distillation
from benchmarks.evidence.estimates import Estimate, difference, estimate
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.study import Finding, Order, Runs, by_method, markdown
from opd_jax import config as configs

TITLE = "Three failures, three remedies"
COST = "5 minutes"
QUICK_SEEDS = 2
ABOUT = """\
A pair of 2 layers and width 32 that has the three failures by construction: the student counts from the prompt's number
to the top and leaves numbers out; the teacher counts right, puts fillers between numbers, ends with another token than
the student, and, once a number stands twice, repeats it for ever (`benchmarks/evidence/counting_language.py`). The
student stops at its own end alone. Answers are judged as sampled at temperature 1 without top-p (the paper: top-p 0.9).
A row is stuck where it has not written the student's end and its last four tokens are one number. `mask` leaves the
first end out of the loss, `top-p` is 0.9 in the rollouts, LSM is on the teacher's top 4."""

TOP_K = 4
METHODS = {
  f"{name}{', mask' * mask}{', top-p' * (top_p < 1)}": (kind, mask, top_p)
  for name, kind in (("sampled", "sampled"), ("LSM", "lsm"))
  for top_p in (1.0, 0.9)
  for mask in (False, True)
}
_QUICK = ("sampled", "sampled, mask", "LSM, mask", "LSM, mask, top-p")
_PAIR = "pair"  # the runs in the ledger that train nothing: the pair as it is
_EARLY = 10  # steps over which the gradient's norm is compared


def settings(quick: bool) -> dict[str, Any]:
  return {"steps": 30 if quick else 100, "rows": 64, "learning_rate": 1e-3, "pretraining": 200 if quick else 600}


def run(order: Order, ledger: Ledger) -> None:
  s = settings(order.quick)
  pair_of = functools.lru_cache(lambda seed: language.make_pair(seed, s["pretraining"]))
  for seed in range(order.seeds):
    if (name := f"{_PAIR} seed {seed}") not in ledger:
      student, teacher = pair_of(seed)
      judged = {"student": language.judge(student), "teacher": language.judge(teacher, language.DONE)}
      ledger.put(name, {"signal": language.signal(student, teacher), **judged})
  for method in _QUICK if order.quick else METHODS:
    missing = [seed for seed in range(order.seeds) if f"{method} seed {seed}" not in ledger]
    programs = programs_of(method, s) if missing else None
    for seed in missing:
      outcome = programs.train(*pair_of(seed), language.prompts, seed, language.judge, s["steps"] // 5)
      looks = {name: [seen[name] for seen in outcome.looks] for name in outcome.looks[0]}
      norm = float(np.mean([row["grad_norm"] for row in outcome.metrics[:_EARLY]]))
      ledger.put(f"{method} seed {seed}", {"steps": outcome.steps, "grad_norm": norm, **looks})
    print(f"failure_modes: {method} done", flush=True)


def programs_of(method: str, s: dict[str, Any]) -> Distillation:
  kind, mask, top_p = METHODS[method]
  config = configs.Config(
    steps=s["steps"],
    rollout=configs.Rollout(prompts_per_step=s["rows"], max_prompt=language.P, top_p=top_p),
    horizon=configs.HorizonConfig(max=language.S, buckets=(language.S,)),
    objective=configs.Objective(kind=kind, top_k=TOP_K),
    optimizer=configs.Optimizer(learning_rate=s["learning_rate"]),
  )
  return Distillation(config, language.V, (language.END,), (language.END,) if mask else ())


def _last(runs: Runs, method: str, column: str) -> list[float]:
  return [run[column][-1] for run in by_method(runs)[method]]


def _signal(runs: Runs, name: str) -> Estimate:
  return estimate(run["signal"][name] for run in by_method(runs)[_PAIR])


def tables(runs: Runs) -> str:
  methods = by_method(runs)
  columns = ("exact", "counted", "stuck", "ended", "end_probability")
  rows = []
  for role in ("student", "teacher"):
    cells = [f"{estimate(run[role][column] for run in methods[_PAIR]):.1%}" for column in columns]
    rows.append([f"{role} before", *cells, "-"])
  for method in (name for name in methods if name != _PAIR):
    cells = [f"{estimate(_last(runs, method, column)):.1%}" for column in columns]
    rows.append([method, *cells, f"{estimate(run['grad_norm'] for run in methods[method]):.2f}"])
  head = ["", "exact", "counts right", "stuck in a loop", "ends", "probability of the end", "gradient norm at first"]
  return markdown(head, rows)


def findings(runs: Runs) -> list[Finding]:
  return [*_of_the_signal(runs), *_of_the_remedies(runs)]


def _of_the_signal(runs: Runs) -> list[Finding]:
  """The three failures: in the pair as it is, and after training with the sampled estimator."""
  negative, filler, tokens = (_signal(runs, name) for name in ("negative", "filler_reward", "filler_tokens"))
  approved, reward = _signal(runs, "loop_teacher"), _signal(runs, "loop_reward")
  own_end, its_end = _signal(runs, "end_student"), _signal(runs, "end_teacher")
  stuck = difference(_last(runs, "sampled, mask", "stuck"), [run["student"]["stuck"] for run in by_method(runs)[_PAIR]])
  ends = [estimate(_last(runs, name, "end_probability")) for name in ("sampled", "sampled, mask")]
  return [
    Finding(
      "most written tokens get a negative reward; a few positive ones, often fillers, dominate",
      "2603.25562 (no figure)",
      f"negative {negative:.0%} of tokens; fillers are {tokens:.1%} of tokens and {filler:.0%} of the positive reward",
      negative.low > 0.5 and filler.low > 10 * tokens.high,
      "more than half negative, and fillers' share of the reward ten times that of the tokens",
    ),
    Finding(
      "inside a loop the teacher approves of the repeated token, so looping is rewarded",
      "2603.25562: teacher's probability 0.9 to 1.0",
      f"probability {approved:.2f}, reward {reward:+.2f} nats; rows stuck, sampled with mask less before: {stuck:+.1%}",
      approved.low >= 0.9 and reward.low > 0 and stuck.low > 0,
      "probability at least 0.9, reward and change above 0",
    ),
    Finding(
      "a correct end is punished for its spelling",
      "2603.25562: the end token: student -0.00, teacher -58.71",
      f"log-prob of the end: student {own_end:.2f}, teacher {its_end:.1f}",
      own_end.low > -0.1 and its_end.high < -5,
      "student above -0.1, teacher below -5",
    ),
    Finding(
      "masking the special token keeps it",
      "2603.25562 (no figure)",
      f"probability of the end after training: sampled {ends[0]:.1%}, with the mask {ends[1]:.1%}",
      ends[0].high < 0.5 < ends[1].low,
      "below one half without, above it with the mask",
    ),
  ]


def _of_the_remedies(runs: Runs) -> list[Finding]:
  """Tables 1 and 3. The second is held against runs with the mask: without it the end alone decides."""
  methods = by_method(runs)

  def gap(left: str, right: str) -> Estimate:
    return difference(_last(runs, left, "exact"), _last(runs, right, "exact"))

  def finding(claim: str, paper: str, gap: Estimate, holds: bool, rule: str) -> Finding:
    return Finding(claim, f"2603.25562, {paper}", f"exact answers {gap:+.1%}", holds, rule)

  above = "interval above 0"
  mask = gap("sampled, mask", "sampled")
  alone, both = gap("LSM, mask", "sampled, mask"), gap("LSM, mask, top-p", "sampled, mask")
  by_top_p = gap("LSM, mask, top-p", "LSM, mask")
  found = [
    finding("masking lifts the sampled estimator", "table 1: average 36.4 to 40.7", mask, mask.low > 0, above),
    finding("LSM alone falls short of sampled", "table 3: 17.7, 20.4", alone, alone.high < 0, "interval below 0"),
    finding("LSM gains by top-p", "table 3: 17.7 to 23.6", by_top_p, by_top_p.low > 0, above),
    finding("LSM with top-p is ahead of sampled", "table 3: 23.6, 20.4", both, both.low > 0, above),
  ]
  if "LSM" in methods:
    lsm, top_p = gap("LSM, mask", "LSM"), gap("sampled, mask, top-p", "sampled, mask")
    found += [
      finding(
        "masking gives LSM next to nothing",
        "table 1: 41.7 to 41.5",
        lsm,
        abs(lsm.mean) < mask.mean / 2,
        "less than half of what it gives the sampled estimator",
      ),
      finding(
        "top-p alone gives the sampled estimator little",
        "table 3: 20.4 to 21.6",
        top_p,
        top_p.low < 0 < top_p.high,
        "interval around 0",
      ),
    ]
  norms = zip(methods["LSM, mask"], methods["sampled, mask"], strict=True)
  ratio = estimate(math.log(lsm["grad_norm"] / sampled["grad_norm"]) for lsm, sampled in norms)
  return [
    *found,
    Finding(
      "LSM has the smaller gradient norm",
      "2603.25562, dynamics (no figure)",
      f"log of the ratio to that of sampled, first {_EARLY} steps: {ratio:+.2f}",
      ratio.high < 0,
      "interval below 0",
    ),
  ]


def draw(runs: Runs, path: Path) -> None:
  methods = by_method(runs)
  names = [name for name in methods if name != _PAIR]
  picture, axes = figure.panels(3, share_y=True)
  for ax, (column, title) in zip(
    axes, (("exact", "exact answers"), ("stuck", "stuck in a loop"), ("end_probability", "probability of the end"))
  ):
    figure.bars(ax, names, [[100 * value for value in _last(runs, name, column)] for name in names])
    before = 100 * estimate(run["student"][column] for run in methods[_PAIR]).mean
    ax.axvline(before, color="#888888", linewidth=0.8, linestyle=":")
    ax.set(title=title, xlabel="%, dotted: before")
  figure.save(picture, path)
