"""What a target costs: CPU-seconds until KL(student || teacher) on held-out prompts has come down, ours beside TRL's.

    python -m benchmarks.peers.cost --out=benchmarks/results/peers_cost [--folder=.cache/peers]
                                    [--sizes=embedded,wide] [--seeds=3]

The embedded task (configs/quickstart.py): a student that sums wrongly, its teacher, prompts of 49 tokens, completions
of 97, end of sequence included. All take the same prompts at each of 40 steps, exact reverse KL, AdamW at 2e-4,
gradients clipped at 1. Two sizes: `embedded`, the task's own models (0.2 million parameters, 33 ids, 32 prompts a
step), where what surrounds the arithmetic weighs most; `wide`, the same models set into larger ones that compute the
same (3.3 and 20 million parameters, 8 prompts a step; see workers/widen.py).

Ours: full horizon (OPD), TOPD at a quarter of it, POPD (10 tokens, 10 more every second step). TRL has no schedules: it
runs at the full length, with a callback of ours that sets POPD's lengths, and with `max_completion_length` at TOPD's.
Every seed has other models, other prompts and other draws.

Weights are kept after some steps and judged afterwards by one program, on held-out prompts at the full horizon. Judging
and saving are not in the CPU-seconds. Ours are given twice: as a process spends them, compiling included, and without
compiling, as in a long run. One process a run, pinned, in turn. Finished runs are kept in the folder and not run again,
so sizes and seeds can be added one by one.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.peers import environments, harness

_OUT = flags.DEFINE_string("out", "benchmarks/results/peers_cost", "Table and JSON are written as OUT.*")
_SIZES = flags.DEFINE_list("sizes", ["embedded", "wide"], "Which models, in this order.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Seeds 0 .. N-1 of each method; by size if not given.")

PROMPT, HORIZON, STEPS = 49, 97, 40
SCHEDULE = (10, 10, 2)  # POPD: start, increment, every
SHORT = 25  # TOPD: ceil(0.25 * 97)
TARGETS = (0.2, 0.1, 0.05, 0.02, 0.01)  # of the student's KL before the first step


@dataclasses.dataclass(frozen=True)
class Size:
  """Prompts a step, seeds, the steps whose students are judged, on how many prompts; what is widened to what."""

  rows: int
  seeds: int
  judged: tuple[int, ...]
  held_out: int
  widened: dict[str, dict[str, int]] | None = None


def _wide(layers: int, width: int, heads: int, mlp: int) -> dict[str, int]:
  return {
    "num_hidden_layers": layers,
    "hidden_size": width,
    "num_attention_heads": heads,
    "num_key_value_heads": heads,
    "intermediate_size": mlp,
  }


SIZES = {
  "embedded": Size(32, 3, (*range(1, 16), *range(20, STEPS + 1, 5)), 128),
  "wide": Size(
    8,
    1,
    (2, 4, 6, 8, 10, 12, 15, 20, 30, STEPS),
    24,
    {"student": _wide(4, 256, 10, 768), "teacher": _wide(6, 512, 20, 1536)},
  ),
}

OURS = {
  "opd_jax OPD": ["--config.horizon.kind=full"],
  "opd_jax TOPD": ["--config.horizon.kind=truncated", "--config.horizon.rho=0.25"],
  "opd_jax POPD": ["--config.horizon.kind=progressive"],
}
TRL = {  # (length, schedule)
  "TRL": (HORIZON, None),
  "TRL, callback": (HORIZON, SCHEDULE),
  "TRL, short": (SHORT, None),
}


def make_task(size: str, seed: int) -> dict[str, Any]:
  """{student, teacher: folders, prompts: texts in the order of a run, held_out: texts}."""
  task = harness.run_worker("opd_jax", "make_task.py", {"seed": seed, "prompts": SIZES[size].rows * STEPS})
  if sizes := SIZES[size].widened:
    folder = environments.folder() / "cost" / f"{size}-models-seed{seed}"
    models = {role: task[role] for role in ("student", "teacher")}
    if not (folder / "teacher" / "model.safetensors").exists():  # the last file that is written
      job = {**models, "sizes": sizes, "folder": str(folder), "texts": task["held_out"][:8]}
      harness.run_worker("opd_jax", "widen.py", job)
    task |= {role: str(folder / role) for role in models}
  return {**task, "held_out": task["held_out"][: SIZES[size].held_out]}


def run(size: str, name: str, seed: int, task: dict[str, Any]) -> dict[str, Any]:
  """One run with its judged students, or what it left when it was run before.

  Returns {curve: [{step, cpu_seconds, compiling, tokens, kl}], before: KL of the student as it came, versions}.
  """
  folder = environments.folder() / "cost" / f"{size}-{name.replace(' ', '_').replace(',', '')}-seed{seed}"
  saved = folder / "answer.json"
  if saved.exists():
    return json.loads(saved.read_text())
  shutil.rmtree(folder, ignore_errors=True)
  judged = SIZES[size].judged
  job = {
    "folder": str(folder),
    "seed": seed,
    "evaluated": judged,
    "student": task["student"],
    "teacher": task["teacher"],
    "rows": SIZES[size].rows,
  }
  if name in OURS:
    answer = harness.run_worker("opd_jax", "opd_jax_cost.py", {**job, "overrides": OURS[name]})
  else:
    horizon, schedule = TRL[name]
    job |= {
      "prompts": task["prompts"],
      "prompt": PROMPT,
      "horizon": horizon,
      "schedule": schedule,
      "learning_rate": 2e-4,
      "checkpointing": False,
    }
    answer = harness.run_worker("trl", "trl_cost.py", job)
  students = [task["student"], *(str(folder / f"step{step}") for step in judged)]
  judge = {"teacher": task["teacher"], "students": students, "prompts": task["held_out"], "horizon": HORIZON}
  before, *after = harness.run_worker("opd_jax", "held_out_kl.py", judge)["kl"]
  curve = [{**point, "kl": kl} for point, kl in zip(answer["curve"], after, strict=True)]
  result = {"curve": curve, "before": before, "versions": answer["versions"]}
  for step in judged:
    shutil.rmtree(folder / f"step{step}")
  _write(saved, result)
  return result


def _write(path: Path, content: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def reached(result: dict[str, Any], share: float) -> dict[str, float] | None:
  """The first judged point of a run at or below `share` of the KL that it began with."""
  return next((point for point in result["curve"] if point["kl"] <= share * result["before"]), None)


def summarise(results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
  """A row a target and method; medians over the seeds that got there, and how many did."""
  rows = []
  for share in TARGETS:
    for name, runs in results.items():
      points = [point for point in (reached(one, share) for one in runs) if point is not None]
      row = {"target": share, "method": name, "seeds": len(runs), "reached": len(points)}
      if points:
        row |= {
          "step": harness.median(p["step"] for p in points),
          "tokens": harness.median(p["tokens"] for p in points),
          "cpu_seconds": harness.median(p["cpu_seconds"] for p in points),
          "without_compiling": harness.median(p["cpu_seconds"] - p["compiling"] for p in points),
        }
      rows.append(row)
  return rows


def table(rows: list[dict[str, Any]], results: dict[str, list[dict[str, Any]]]) -> str:
  lines = []
  for share in TARGETS:
    of_target = {row["method"]: row for row in rows if row["target"] == share}
    fixed, grown = (of_target[name].get("cpu_seconds") for name in ("TRL", "TRL, callback"))
    lines += [
      f"Target: {share:.0%} of the KL before the first step. `x` is how many times those CPU-seconds TRL takes at its "
      "full length, and with the callback.",
      "",
      "| | reached | steps | tokens | CPU-s without compiling | x TRL | x TRL, callback | CPU-s with compiling | x TRL "
      "| x TRL, callback |\n|" + "---|" * 10,
    ]
    for name, row in of_target.items():
      if not row["reached"]:
        lines.append(f"| {name} | 0 of {row['seeds']} |" + " - |" * 8)
        continue
      cells = [f"{row['step']:.0f}", f"{row['tokens']:,.0f}"]
      for figure in ("without_compiling", "cpu_seconds"):
        cells.append(f"{row[figure]:.1f}")
        cells += [f"{peer / row[figure]:.2f}" if peer else "-" for peer in (fixed, grown)]
      lines.append(f"| {name} | {row['reached']} of {row['seeds']} | {' | '.join(cells)} |")
    lines.append("")
  lines += [
    f"All {STEPS} steps; medians over seeds.",
    "",
    "| | KL before | KL after | CPU-s without compiling | compiling | tokens |\n|" + "---|" * 6,
  ]
  for name, runs in results.items():
    last = [one["curve"][-1] for one in runs]
    cells = [
      f"{harness.median(one['before'] for one in runs):.4f}",
      f"{harness.median(p['kl'] for p in last):.4f}",
      f"{harness.median(p['cpu_seconds'] - p['compiling'] for p in last):.1f}",
      f"{harness.median(p['compiling'] for p in last):.1f}",
      f"{harness.median(p['tokens'] for p in last):,.0f}",
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(_: Sequence[str]) -> None:
  environments.interpreter("trl")
  before = harness.machine()
  runs: dict[str, dict[str, list[dict]]] = {size: {name: [] for name in (*OURS, *TRL)} for size in _SIZES.value}
  seeds = {size: _SEEDS.value or SIZES[size].seeds for size in _SIZES.value}
  for size, results in runs.items():
    for seed in range(seeds[size]):
      task = make_task(size, seed)
      for name, of_seeds in results.items():
        of_seeds.append(run(size, name, seed, task))
        print(f"{size}, seed {seed}, {name}: KL {of_seeds[-1]['curve'][-1]['kl']:.4f}", flush=True)
  after = harness.machine()
  summary = {size: summarise(results) for size, results in runs.items()}
  versions: dict[str, str] = {}
  for one in (of_seeds[0] for results in runs.values() for of_seeds in results.values()):
    versions |= one["versions"]
  text = (
    f"CPU-seconds to a held-out KL(student || teacher), the embedded task, at most {HORIZON} new tokens, medians over "
    f"seeds. {harness.machine_line(before, after, versions)} Runs that were there already were "
    "not run again."
  )
  for size, results in runs.items():
    text += (
      f"\n\n### {size}: {SIZES[size].rows} prompts a step, {seeds[size]} seed(s)\n\n{table(summary[size], results)}"
    )
  harness.write(_OUT.value, text, {"machine": [before, after], "summary": summary, "runs": runs})


if __name__ == "__main__":
  app.run(main)
