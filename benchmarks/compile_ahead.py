"""What a growth of the horizon costs: the step after it, against the median step of its bucket.

    python -m benchmarks.compile_ahead --out=benchmarks/results/compile_ahead

The embedded task, progressive horizons 25, 49, 73, 97 with a bucket each, every compile cold, in processes of their
own: with compile-ahead and without, growing slower than the compiler compiles and faster, on one device and on eight
simulated ones. Everything is in `seconds_step`; the first step, which pays for its own programs, is listed apart.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

_SLOW = flags.DEFINE_integer("slow", 40, "steps between two growths of the slow schedule")
_FAST = flags.DEFINE_integer("fast", 3, "and of the fast one")
_DEVICES = flags.DEFINE_list("devices", ["1", "8"], "simulated devices")
_OUT = flags.DEFINE_string("out", None, "where to write OUT.md and OUT.json")

BUCKETS = (25, 49, 73, 97)


def train(every: int, ahead: bool, devices: int) -> list[dict]:
  """The rows of a run whose horizon grows after each `every` steps."""
  with tempfile.TemporaryDirectory() as folder:
    settings = {
      "steps": len(BUCKETS) * every,
      "horizon.start": BUCKETS[0],
      "horizon.increment": BUCKETS[1] - BUCKETS[0],
      "horizon.every": every,
      "horizon.buckets": ",".join(map(str, BUCKETS)),
      "horizon.compile_ahead": str(ahead).lower(),
      "log.fail_on_unplanned_compile": "true",
      "log.tensorboard": "false",
      "checkpoint.every": 10**6,
      "eval.path": "",
    }
    command = [sys.executable, "-m", "opd_jax.train", "--config=configs/quickstart.py", f"--workdir={folder}/run"]
    environment = {
      **os.environ,
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
    }
    subprocess.run(
      [*command, *(f"--config.{name}={value}" for name, value in settings.items())],
      env=environment,
      check=True,
      stdout=sys.stderr,
    )
    return [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]


def growths(rows: list[dict]) -> list[dict]:
  """One entry a growth: the bucket, the step after it, and the median step of that bucket, in seconds."""
  found = []
  for before, row in itertools.pairwise(rows):
    if row["bucket"] != before["bucket"]:
      median = statistics.median(other["seconds_step"] for other in rows if other["bucket"] == row["bucket"])
      found.append({"bucket": row["bucket"], "step": row["seconds_step"], "median": median})
  return found


def measure(every: int, ahead: bool, devices: int) -> dict:
  rows = train(every, ahead, devices)
  new = [compile for row in rows for compile in row.get("compiles_new", [])]
  compiles = [compile for compile in new if compile["program"] != "canary"]  # it is no part of a step
  assert len({(c["program"], c["bucket"]) for c in compiles}) == len(compiles) == 2 * len(BUCKETS) + 1
  return {
    "devices": devices,
    "steps between growths": every,
    "compile_ahead": ahead,
    "seconds between growths": sum(row["seconds_step"] for row in rows[1:]) / len(BUCKETS),
    "seconds of compiles": sum(c["seconds"] for c in compiles),
    "first step": rows[0]["seconds_step"],
    "waited after the first": sum(row["seconds_compile"] + row["seconds_compile_wait"] for row in rows[1:]),
    "unplanned": rows[-1]["unplanned_compiles"],
    "growths": growths(rows),
  }


def table(cases: list[dict]) -> str:
  lines = [
    "| devices | growth every | compile-ahead | compiles, s | first step, s | compiling after it, s "
    "| step after a growth / median of its bucket | unplanned |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for case in cases:
    ratios = ", ".join(f"{growth['step'] / growth['median']:.2f}" for growth in case["growths"])
    lines.append(
      f"| {case['devices']} | {case['steps between growths']} steps, {case['seconds between growths']:.1f} s "
      f"| {'on' if case['compile_ahead'] else 'off'} | {case['seconds of compiles']:.1f} | {case['first step']:.1f} "
      f"| {case['waited after the first']:.1f} | {ratios} | {case['unplanned']} |"
    )
  return "\n".join(lines) + "\n"


def main(_) -> None:
  cases = [
    measure(every, ahead, int(devices))
    for devices in _DEVICES.value
    for every, ahead in ((_SLOW.value, True), (_SLOW.value, False), (_FAST.value, True))
  ]
  text = table(cases)
  print(text)
  if _OUT.value:
    Path(f"{_OUT.value}.md").write_text(text)
    Path(f"{_OUT.value}.json").write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
  app.run(main)
