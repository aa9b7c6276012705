"""How all peers are run: one process a measurement, on one core with one thread, in turn, several times.

    repeat 1   transformers │ tunix │ opd_jax │           a process each: it loads, warms up, is timed, and ends
    repeat 2   transformers │ tunix │ opd_jax │ ...       so that whatever drifts on the machine hits all of them

A worker is a script under workers/. It is run by its own environment's Python, reads a job (JSON) from stdin and prints
its answer (JSON) as the last line of stdout. Times are CPU-seconds of the process, all threads: on a shared machine
they repeat within a few percent where wall time does not. Nothing here imports jax or torch: a child's peak of memory
would begin with its parent's.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.peers.environments import PINNED, interpreter

_CORE = flags.DEFINE_integer("core", None, "Core that the workers are pinned to; the last one if not given.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Processes of each measurement; medians are reported.")

_WORKERS = Path(__file__).parent / "workers"
_ROOT = Path(__file__).parents[2]

# One thread each, no compile read back from an earlier process, nothing fetched.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
  "OMP_NUM_THREADS": "1",
  "MKL_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
  "TOKENIZERS_PARALLELISM": "false",
  "HF_HUB_OFFLINE": "1",
  "TRANSFORMERS_VERBOSITY": "error",
}
_UNSET = ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")


def run_worker(environment: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
  """One process: the answer of workers/`script` to `job`. Raises RuntimeError, with what it wrote, where it fails."""
  pin = ["taskset", "-c", str(_core())] if shutil.which("taskset") else []
  variables = {name: value for name, value in os.environ.items() if name not in _UNSET} | _ENVIRONMENT
  if environment == "opd_jax":
    variables["PYTHONPATH"] = str(_ROOT)
  done = subprocess.run(
    [*pin, interpreter(environment), str(_WORKERS / script)],
    input=json.dumps(job),
    env=variables,
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-4000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def interleaved(jobs: dict[str, tuple[str, str, dict]], repeats: int) -> dict[str, list[dict[str, Any]]]:
  """{name: answers, one a repeat} of {name: (environment, script, job)}, one process of each before the next repeat."""
  for environment in {environment for environment, _, _ in jobs.values()}:
    interpreter(environment)  # no install between two measurements
  answers: dict[str, list[dict]] = {name: [] for name in jobs}
  for repeat in range(repeats):
    for name, (environment, script, job) in jobs.items():
      answers[name].append(run_worker(environment, script, job))
      print(f"repeat {repeat + 1} of {repeats}: {name}, load {os.getloadavg()[0]:.1f}", flush=True)
  return answers


def median(values: Iterable[float]) -> float:
  return statistics.median(list(values))


def spread(values: Sequence[float]) -> float:
  """Largest distance from the median, as a share of it: how well a measurement repeats."""
  middle = median(values)
  return max(abs(value - middle) for value in values) / middle


def machine() -> dict[str, Any]:
  """What the numbers depend on beside the code. `load` is that of the last minute: above 1, others were at work."""
  processor = platform.processor() or platform.machine()
  if Path("/proc/cpuinfo").exists():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
  return {
    "processor": processor,
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "load": round(os.getloadavg()[0], 2),
    "peers": {name: list(pins) for name, pins in PINNED.items()},
  }


def machine_line(before: dict[str, Any], after: dict[str, Any], versions: dict[str, str]) -> str:
  """One sentence for a table's head."""
  return (
    f"{before['processor']}, {before['cores']} cores, Python {before['python']}; each process pinned to one core, one "
    f"thread, float32. Load of the machine {before['load']} at the start, {after['load']} at the end. "
    + ", ".join(f"{name} {version}" for name, version in versions.items())
    + "."
  )


def write(out: str, text: str, record: dict[str, Any]) -> None:
  """OUT.md and OUT.json."""
  path = Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.with_suffix(".md").write_text(text + "\n")
  path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
  print(f"{text}\n\nwritten to {path}.md, .json")


def _core() -> int:
  if _CORE.value is not None:
    return _CORE.value
  available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
  return max(available)
