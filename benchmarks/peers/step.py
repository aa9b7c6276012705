"""A whole step of distillation beside TRL's DistillationTrainer: CPU-seconds, and the memory of the process.

    python -m benchmarks.peers.step --out=benchmarks/results/peers_step [--folder=.cache/peers] [--repeats=5]
                                    [--horizons=16,64,128,256]

A random student of 11.5 million parameters, a random teacher of 35.7, vocabulary 32,768; 8 prompts of 32 tokens, H new
tokens each, nothing ends a completion; exact reverse KL over the whole vocabulary, AdamW, float32, no recomputation of
layers. Before any time is taken, both compute the loss of the same tokens at the same weights, and must agree.

A process does one step first, which compiles what is to be compiled, then the timed ones. A step is everything between
the end of one update and the end of the next. Generation is part of it, and also told apart. TRL recomputes layers in
the backward pass by default (gradient_checkpointing): that is a row of its own, slower and smaller.
"""

from collections.abc import Sequence
from typing import Any

from absl import app, flags

from benchmarks.peers import harness, pair

_OUT = flags.DEFINE_string("out", "benchmarks/results/peers_step", "Table and JSON are written as OUT.*")
_HORIZONS = flags.DEFINE_list("horizons", ["16", "64", "128", "256"], "New tokens of each row.")

OURS, TRL, TRL_DEFAULT = "opd_jax", "TRL", "TRL, checkpointing"
TOLERANCE = 1e-4  # of loss and gradient norm, relative
GATE_HORIZON = 64
STEPS = {16: 8, 64: 4, 128: 2}  # timed steps of a process; others 2


def check_loss(job: dict[str, Any]) -> dict[str, Any]:
  """Both losses and gradient norms on the tokens that our student writes. Raises SystemExit where they differ."""
  job = {**job, "horizon": GATE_HORIZON, "prompts": job["prompts"][: pair.ROWS], "checkpointing": False}
  ours = harness.run_worker("opd_jax", "opd_jax_step.py", {**job, "steps": 0})
  theirs = harness.run_worker("trl", "trl_step.py", {**job, "tokens": ours["tokens"]})
  gate = {name: (ours[name], theirs[name]) for name in ("loss", "grad_norm")}
  for name, (a, b) in gate.items():
    print(f"step 0, {name}: opd_jax {a:.7f}, TRL {b:.7f}", flush=True)
    if abs(a - b) > TOLERANCE * abs(b):
      raise SystemExit(f"{name} differs by more than {TOLERANCE:g}: no table")
  return gate


def summarise(answers: list[dict[str, Any]]) -> dict[str, float]:
  """Medians over the processes of one peer at one horizon. `compile`: what the first step takes beyond a later one."""
  return {
    "step": harness.median(one["step"] for one in answers),
    "generation": harness.median(one["generation"] for one in answers),
    "compile": harness.median(one["first"] - one["step"] for one in answers),
    "peak_bytes": harness.median(one["peak_bytes"] for one in answers),
    "spread": harness.spread([one["step"] for one in answers]),
  }


def table(summary: dict[int, dict[str, dict[str, float]]]) -> str:
  lines = [
    "| H | | CPU-s a step | of it generation | tokens a CPU-s | peak memory, GB | compiling (first step), CPU-s |",
    "|---|---|---|---|---|---|---|",
  ]
  for H, peers in summary.items():
    for name, figures in peers.items():
      lines.append(
        f"| {H} | {name} | {figures['step']:.2f} | {figures['generation']:.2f} "
        f"| {pair.ROWS * H / figures['step']:,.0f} | {figures['peak_bytes'] / 1e9:.2f} | {figures['compile']:.1f} |"
      )
  lines += [
    "",
    "| H | TRL / opd_jax, step | generation | the rest | memory | steps until our compiling is paid back |",
    "|---|---|---|---|---|---|",
  ]
  for H, peers in summary.items():
    ours, trl = peers[OURS], peers[TRL]
    saved = trl["step"] - ours["step"]
    ratios = [
      trl["step"] / ours["step"],
      trl["generation"] / ours["generation"],
      (trl["step"] - trl["generation"]) / (ours["step"] - ours["generation"]),
      trl["peak_bytes"] / ours["peak_bytes"],
    ]
    paid = f"{(ours['compile'] - trl['compile']) / saved:.0f}" if saved > 0 else "never"
    lines.append(f"| {H} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {paid} |")
  worst = max(figures["spread"] for peers in summary.values() for figures in peers.values())
  return "\n".join([*lines, "", f"No process's step is further than {worst:.0%} from its median."])


def main(_: Sequence[str]) -> None:
  horizons = [int(H) for H in _HORIZONS.value]
  models = pair.make()
  job = {
    "student": models.student,
    "teacher": models.teacher,
    "prompts": models.prompts,
    "rows": pair.ROWS,
    "learning_rate": 1e-4,
  }
  before = harness.machine()
  gate = check_loss(job)
  answers: dict[int, dict[str, list[dict]]] = {}
  for H in horizons:
    timed = {**job, "horizon": H, "steps": STEPS.get(H, 2)}
    jobs = {
      TRL: ("trl", "trl_step.py", {**timed, "checkpointing": False}),
      TRL_DEFAULT: ("trl", "trl_step.py", {**timed, "checkpointing": True}),
      OURS: ("opd_jax", "opd_jax_step.py", timed),
    }
    print(f"H = {H}", flush=True)
    answers[H] = harness.interleaved(jobs, harness.REPEATS.value)
  after = harness.machine()
  summary = {H: {name: summarise(repeats) for name, repeats in peers.items()} for H, peers in answers.items()}
  versions: dict[str, str] = {}
  for repeats in answers[horizons[0]].values():
    versions |= repeats[0]["versions"]
  (our_loss, trl_loss), (our_norm, trl_norm) = gate["loss"], gate["grad_norm"]
  text = (
    f"A step: student 11.5 M, teacher 35.7 M parameters, vocabulary 32,768, {pair.ROWS} prompts of 32 tokens, exact "
    f"reverse KL, AdamW; {harness.REPEATS.value} interleaved processes each, medians. "
    f"{harness.machine_line(before, after, versions)}\n\n"
    f"The same tokens at the same weights: loss {our_loss:.6f} (TRL {trl_loss:.6f}), norm of the gradient "
    f"{our_norm:.6f} (TRL {trl_norm:.6f}).\n\n{table(summary)}"
  )
  harness.write(_OUT.value, text, {"machine": [before, after], "gate": gate, "summary": summary, "processes": answers})


if __name__ == "__main__":
  app.run(main)
