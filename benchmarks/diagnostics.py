"""What the diagnostics of a step cost: the update with them and without, side by side.

    taskset -c 0 env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
      python -m benchmarks.diagnostics --repeats=15 --out=benchmarks/results/diagnostics_cpu

The random pair of `benchmarks.step`, reverse KL. Both programs are compiled first, then called in turn; CPU-seconds of
one pinned thread, the median of so many calls each. The share is of the whole step, to which the rollout belongs.
"""

import contextlib
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.step import VOCABULARY, publish, random_models, rollout_arguments, settings
from opd_jax.distributed import make_mesh
from opd_jax.programs import ProgramTable
from opd_jax.telemetry.metrics import Ratio
from opd_jax.training import step
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, init_state, make_optimizer

FLAGS = flags.FLAGS  # those of benchmarks.step


def seconds(call) -> float:
  started = time.process_time()
  jax.block_until_ready(call())
  return time.process_time() - started


def measure(H: int, student, teacher) -> dict[str, float]:
  config, batch = settings(H), rollout_arguments(H)
  updates = {}
  for name in ("with", "without"):
    table = ProgramTable(make_mesh((1, 1, 1), jax.devices()[:1]))
    state = init_state(jax.tree.map(jnp.copy, student), make_optimizer(config))
    with silenced() if name == "without" else contextlib.nullcontext():
      step.define_programs(table, config, (0,), VOCABULARY)
      weights = table.run("decode_layout", 0, state.student)
      rollout = table.run("rollout", H, weights, *batch)
      table.compile("update", H, state, Frozen(teacher), Batch(rollout))
    updates[name] = (table, [state], rollout)
  table, _, _ = updates["with"]

  def write():
    return table.run("rollout", H, weights, *batch)

  def learn(name):
    table, state, rollout = updates[name]
    state[0], metrics = table.run("update", H, state[0], Frozen(teacher), Batch(rollout))
    return metrics

  taken = {"with": [], "without": [], "rollout": []}
  for _ in range(FLAGS.repeats + 1):  # the first of each does not count
    for name in ("with", "without"):
      taken[name].append(seconds(lambda name=name: learn(name)))
    taken["rollout"].append(seconds(write))
  return {name: statistics.median(values[1:]) for name, values in taken.items()}


def _nothing(*_, **__):
  return {}


SILENT = {"diagnose": _nothing, "repetition": lambda *_: Ratio.zero(), "_moved": lambda *_: Ratio.zero()}


def silenced():
  """Within it updates are defined and compiled without their diagnostics."""
  return mock.patch.multiple(step, **SILENT)


def main(_) -> None:
  student, teacher = random_models(jnp.float32)
  lines = [
    "| H | update, s | without diagnostics, s | rollout, s | diagnostics, share of the step |",
    "|---|---|---|---|---|",
  ]
  found = {}
  for H in map(int, FLAGS.horizons):
    found[H] = one = measure(H, student, teacher)
    share = (one["with"] - one["without"]) / (one["without"] + one["rollout"])
    lines.append(f"| {H} | {one['with']:.3f} | {one['without']:.3f} | {one['rollout']:.3f} | {share:.1%} |")
  publish("\n".join(lines) + "\n", found)


if __name__ == "__main__":
  app.run(main)
