"""What every worker does alike: a job from stdin, CPU-seconds, one line of JSON as the answer."""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def read_job() -> dict[str, Any]:
  return json.loads(sys.stdin.read())


def cpu_seconds() -> float:
  """Of this process so far, user and system, all its threads."""
  return time.process_time()


def peak_bytes() -> int:
  """Most resident memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(packages: list[str], **values: Any) -> None:
  """Prints the answer, and the versions of `packages`."""
  print()
  print(json.dumps({**values, "versions": {name: version(name) for name in packages}}), flush=True)


def time_generation(generate: Callable[[int, bool], Any], job: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """CPU-seconds of `generate(horizon, greedy)`, which returns ids [B][horizon], per mode and horizon.

  `first` is the first call at that horizon, with whatever is compiled or set up for it; `steady` the mean of as many
  calls after it as make at least 256 tokens a row. `tokens` are those of the first greedy call.
  """
  modes = {}
  for mode in ("greedy", "sampled"):
    modes[mode] = {}
    for horizon in job["horizons"]:
      started = cpu_seconds()
      tokens = generate(horizon, mode == "greedy")
      first = cpu_seconds() - started
      calls = max(1, 256 // horizon)
      started = cpu_seconds()
      for _ in range(calls):
        generate(horizon, mode == "greedy")
      steady = (cpu_seconds() - started) / calls
      modes[mode][horizon] = {"first": first, "steady": steady}
      if mode == "greedy":
        modes[mode][horizon]["tokens"] = [list(map(int, row)) for row in tokens]
  return modes
