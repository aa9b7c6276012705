"""Our sampler beside transformers' `generate` and Tunix's: the same weights, prompts and lengths, and the same tokens.

    python -m benchmarks.peers.sampler --out=benchmarks/results/peers_sampler [--folder=.cache/peers] [--repeats=5]

A random Qwen3 of 11.5 million parameters (4 layers, width 256, vocabulary 32,768), 8 prompts of 32 tokens, nothing
ends a completion. Greedy tokens must be the same ids from all of them at every horizon, or there is no table. Then, in
CPU-seconds of one pinned thread: steady calls, and the first call at each horizon, which holds its compile. Greedy, and
sampled at temperature 1, as on-policy distillation samples. Ours returns log-probabilities as well; theirs do not.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.peers import harness, pair

_OUT = flags.DEFINE_string("out", "benchmarks/results/peers_sampler", "Table and JSON are written as OUT.*")
_HORIZONS = flags.DEFINE_list("horizons", ["32", "64", "128", "256"], "New tokens of each row.")

OURS, ONE_BUCKET = "opd_jax", "opd_jax, one bucket"
PEERS = ("transformers", "tunix")
MODES = ("greedy", "sampled")
CALLS = (1, 10, 100)  # of each horizon, for what compiling costs in the long run


def jobs(horizons: list[int]) -> dict[str, tuple[str, str, dict]]:
  models = pair.make()
  job = {"model": models.student, "prompts": models.prompts[: pair.ROWS], "horizons": horizons}
  architecture = json.loads((Path(models.student) / "config.json").read_text())
  architecture.setdefault("rope_theta", architecture.get("rope_parameters", {}).get("rope_theta"))
  return {
    "transformers": ("trl", "transformers_sampler.py", job),
    "tunix": ("tunix", "tunix_sampler.py", {**job, "architecture": architecture}),
    OURS: ("opd_jax", "opd_jax_sampler.py", {**job, "one_bucket": False}),
    ONE_BUCKET: ("opd_jax", "opd_jax_sampler.py", {**job, "one_bucket": True}),
  }


def check_tokens(answers: dict[str, list[dict[str, Any]]], horizons: list[int]) -> None:
  """Raises SystemExit where two peers, or two processes of one, differ in a greedy token."""
  expected = answers[PEERS[0]][0]["modes"]["greedy"]
  for name, repeats in answers.items():
    for one in repeats:
      for horizon in map(str, horizons):
        rows, wanted = one["modes"]["greedy"][horizon]["tokens"], expected[horizon]["tokens"]
        for b, (row, right) in enumerate(zip(rows, wanted, strict=True)):
          if row != right:
            at = next((t for t, pair in enumerate(zip(row, right)) if pair[0] != pair[1]), min(len(row), len(right)))
            raise SystemExit(f"{name} and {PEERS[0]} differ at horizon {horizon}, row {b}, token {at}: no table")


def summarise(answers: dict[str, list[dict[str, Any]]], horizons: list[int]) -> dict[str, Any]:
  """{mode: {peer: {steady, first, compile: {horizon: CPU-s}, spread}}}; medians over repeats."""
  summary: dict[str, Any] = {}
  for mode in MODES:
    summary[mode] = {}
    for name, repeats in answers.items():
      timings = {H: [one["modes"][mode][str(H)] for one in repeats] for H in horizons}
      steady = {H: harness.median(t["steady"] for t in timings[H]) for H in horizons}
      summary[mode][name] = {
        "steady": steady,
        "first": {H: harness.median(t["first"] for t in timings[H]) for H in horizons},
        "compile": {H: harness.median(t["first"] - t["steady"] for t in timings[H]) for H in horizons},
        "spread": {H: harness.spread([t["steady"] for t in timings[H]]) for H in horizons},
      }
  return summary


def total(figures: dict[str, Any], calls: int) -> float:
  """CPU-seconds of `calls` calls at each of the horizons, one horizon after the other, from a cold start."""
  return sum(first + (calls - 1) * figures["steady"][H] for H, first in figures["first"].items())


def table(summary: dict[str, Any], horizons: list[int]) -> str:
  lines = []
  for mode in MODES:
    figures = summary[mode]
    lines += [
      f"### {mode}",
      "",
      "Tokens a CPU-second, steady; in brackets the CPU-seconds that the first call at a horizon takes beyond that "
      "(compiling).",
      "",
      f"| | {' | '.join(f'H = {H}' for H in horizons)} |\n|---|{'---|' * len(horizons)}",
    ]
    for name, figure in figures.items():
      cells = [f"{pair.ROWS * H / figure['steady'][H]:,.0f} ({figure['compile'][H]:.1f})" for H in horizons]
      lines.append(f"| {name} | {' | '.join(cells)} |")
    for peer in PEERS:
      cells = [f"{figures[peer]['steady'][H] / figures[OURS]['steady'][H]:.2f}" for H in horizons]
      lines.append(f"| opd_jax / {peer} | {' | '.join(cells)} |")
    lines += [
      "",
      "CPU-seconds of N calls at each horizon, one horizon after the other, compiling on the way; in brackets how many "
      "times those Tunix takes.",
      "",
      f"| | {' | '.join(f'N = {N}' for N in CALLS)} |\n|---|{'---|' * len(CALLS)}",
    ]
    for name, figure in figures.items():
      cells = [f"{total(figure, N):,.1f} ({total(figures['tunix'], N) / total(figure, N):.2f})" for N in CALLS]
      lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
  worst = max(max(figure["spread"].values()) for mode in MODES for figure in summary[mode].values())
  lines.append(f"No steady figure of any process is further than {worst:.0%} from its median.")
  return "\n".join(lines)


def main(_: Sequence[str]) -> None:
  horizons = [int(H) for H in _HORIZONS.value]
  before = harness.machine()
  answers = harness.interleaved(jobs(horizons), harness.REPEATS.value)
  check_tokens(answers, horizons)
  summary = summarise(answers, horizons)
  after = harness.machine()
  versions: dict[str, str] = {}
  for repeats in answers.values():
    versions |= repeats[0]["versions"]
  tokens = pair.ROWS * sum(horizons)
  text = (
    f"Generation, random Qwen3 of 11.5 M parameters, vocabulary 32,768, {pair.ROWS} prompts of 32 tokens, "
    f"{harness.REPEATS.value} interleaved processes each, medians. {harness.machine_line(before, after, versions)}\n\n"
    f"All {tokens:,} greedy tokens are the same ids from all of them. Ours returns log-probabilities as well.\n\n"
    + table(summary, horizons)
  )
  for repeats in answers.values():
    for one in repeats:
      for timing in one["modes"]["greedy"].values():
        del timing["tokens"]
  harness.write(_OUT.value, text, {"machine": [before, after], "summary": summary, "processes": answers})


if __name__ == "__main__":
  app.run(main)
