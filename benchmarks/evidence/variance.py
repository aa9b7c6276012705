"""Token-level against sequence-level: the variance of the gradient, what it does to training, how it grows with T."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import figure, toy_training
from benchmarks.evidence.estimates import estimate
from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.study import Finding, Order, Runs, by_method, markdown

TITLE = "Variance of the gradient"
COST = "2 minutes"
QUICK_SEEDS = 2
ABOUT = """\
The toy of arXiv 2603.25562: a teacher for each of two mirrored control tasks by REINFORCE, one student distilled from
both in turn, with the return-to-go discounted by gamma (0 is token-level, 1 sequence-level). The measure is the
paper's: 64 walks in 8 micro-batches, output layer, mean squared distance to the mean gradient. At the left, along each
gamma's own training; at the right, for walks of other lengths, that of single walks at the student before training and
after it (gamma 0). What the paper does not tell (reward, limits of a move, number of moves) is ours."""

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (4, 8, 16, 32, 64)
REACHED = 0.5  # mean distance to each target below which it counts as reached


def settings(quick: bool) -> dict[str, Any]:
  teacher, student, every = (300, 200, 50) if quick else (600, 2000, 100)
  counts = {"teacher": teacher, "student": student, "every": every, "walks": 256 if quick else 2048}
  return {**counts, "gammas": GAMMAS, "lengths": LENGTHS}


def run(order: Order, ledger: Ledger) -> None:
  for seed in range(order.seeds):
    if (name := f"toy seed {seed}") not in ledger:
      ledger.put(name, toy_training.one_seed(seed, **settings(order.quick)))
      print(f"variance: seed {seed} done", flush=True)


def exponents(run: dict[str, Any], when: str) -> tuple[float, float]:
  """Slopes of log variance over log T, of gamma 0 and 1."""
  log_length = np.log(LENGTHS)
  return tuple(float(np.polyfit(log_length, np.log(values), 1)[0]) for values in zip(*run["by_length"][when]))


def _orders(run: dict[str, Any], gamma: float) -> float:
  """Orders of magnitude by which a gamma's variance is above that of 0, each along its own training."""
  variance = np.asarray(run["variance"])
  return float(np.mean(np.log10(variance[:, GAMMAS.index(gamma)] / variance[:, GAMMAS.index(0.0)])))


def _reaches(run: dict[str, Any], gamma: float) -> bool:
  return max(run["misses"][-1][GAMMAS.index(gamma)]) < REACHED


def tables(runs: Runs) -> str:
  seeds = by_method(runs)["toy"]
  rows = []
  for g, gamma in enumerate(GAMMAS):
    first, second = (estimate(run["misses"][-1][g][half] for run in seeds) for half in (0, 1))
    reached = sum(_reaches(run, gamma) for run in seeds)
    orders = estimate(_orders(run, gamma) for run in seeds)
    rows.append([f"{gamma:g}", f"{orders:.2f}", f"{first:.2f}", f"{second:.2f}", f"{reached} of {len(seeds)}"])
  teacher = [estimate(run["teacher_misses"][half] for run in seeds) for half in (0, 1)]
  rows.append(["teachers", "-", f"{teacher[0]:.2f}", f"{teacher[1]:.2f}", "-"])
  by_gamma = markdown(["gamma", "log10 of variance over gamma 0's", "misses 1st target by", "2nd by", "reached"], rows)
  rows = []
  for when in ("before", "after"):
    slopes = [estimate(exponents(run, when)[i] for run in seeds) for i in (0, 1)]
    rows.append([when, f"{slopes[0]:.2f}", f"{slopes[1]:.2f}"])
  return f"{by_gamma}\n\n{markdown(['student', 'exponent of T, gamma 0', 'gamma 1'], rows)}"


def findings(runs: Runs) -> list[Finding]:
  seeds = by_method(runs)["toy"]
  token, sequence = (sum(_reaches(run, gamma) for run in seeds) for gamma in (0.0, 1.0))
  slopes = {when: [estimate(exponents(run, when)[i] for run in seeds) for i in (0, 1)] for when in ("before", "after")}
  bounded = all(of_token.high <= 2 and of_sequence.high <= 4 for of_token, of_sequence in slopes.values())
  apart = all(of_sequence.low > of_token.high for of_token, of_sequence in slopes.values())
  found = []
  for gamma in (0.75, 1.0):
    orders = estimate(_orders(run, gamma) for run in seeds)
    found.append(
      Finding(
        f"gamma {gamma:g} has one to several orders of magnitude more variance than gamma 0",
        "2603.25562, figure of the toy",
        f"log10 of the ratio {orders:.2f}",
        orders.low >= 1,
        "interval at or above 1",
      )
    )
  return [
    *found,
    Finding(
      "gamma 0 always reaches the targets; gamma 1 drifts or stops short",
      "2603.25562, seeds 42, 43, 2026",
      f"within {REACHED} of both targets: {token} of {len(seeds)} with 0, {sequence} of {len(seeds)} with 1",
      token == len(seeds) and sequence < token,
      "all runs with 0, not all with 1",
    ),
    Finding(
      "variance is O(T^2) token-level, O(T^4) sequence-level (worst-case bounds)",
      "2603.25562 (bounds)",
      "exponents " + "; ".join(f"{when} training {token:.2f} and {seq:.2f}" for when, (token, seq) in slopes.items()),
      bounded and apart,
      "intervals not above 2 and 4, and gamma 1's above gamma 0's",
    ),
  ]


def draw(runs: Runs, path: Path) -> None:
  seeds = by_method(runs)["toy"]
  picture, (by_step, by_length) = figure.panels(2)
  for g, (gamma, colour) in enumerate(zip(GAMMAS, figure.COLOURS)):
    values = [np.log10(np.asarray(run["variance"])[:, g]) for run in seeds]
    figure.line(by_step, seeds[0]["steps"], values, colour, f"gamma {gamma:g}")
  by_step.set(xlabel="step", ylabel="log10 of the gradient's variance", title="along each gamma's own training")
  by_step.legend(frameon=False, fontsize=8)
  for style, when in (("-", "before"), ("--", "after")):
    for i, (gamma, colour) in enumerate(((0, figure.COLOURS[0]), (1, figure.COLOURS[4]))):
      mean = [math.exp(np.mean([np.log(run["by_length"][when][k][i]) for run in seeds])) for k in range(len(LENGTHS))]
      slope = estimate(exponents(run, when)[i] for run in seeds)
      by_length.plot(LENGTHS, mean, style, color=colour, marker="o", label=f"gamma {gamma}, {when}: T^{slope.mean:.1f}")
  by_length.set(xscale="log", yscale="log", xlabel="moves T", title="of single walks", ylabel="variance")
  by_length.set_xticks(LENGTHS, map(str, LENGTHS))
  by_length.minorticks_off()
  by_length.legend(frameon=False, fontsize=8)
  figure.save(picture, path)
