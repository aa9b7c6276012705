"""Runs of `opd_jax.train` side by side: one process and one core each, finished ones kept, and what became of them.

    jobs ─► a core that is free ─► taskset -c CORE python -m opd_jax.train ... --workdir=ROOT/NAME ─► Curve

One XLA thread a process, so that its CPU-seconds mean the same whatever runs beside it; compiling is counted apart. All
jobs share a persistent compilation cache.
"""

import concurrent.futures
import dataclasses
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from opd_jax.telemetry.record import RunRecord, read_run

SHARE = 0.95  # of OPD's final accuracy: the target whose cost is compared
_LAST_FILE = "report.html"  # that a run writes


@dataclasses.dataclass(frozen=True)
class Job:
  """One run: the name of its folder, and the flags of `opd_jax.train` but for --workdir."""

  name: str
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Curve:
  """One run: accuracy in [0, 1], tokens generated and CPU-seconds spent at each evaluated step."""

  steps: list[int]
  accuracy: list[float]
  tokens: list[int]
  cpu_seconds: list[float]
  cpu_seconds_compile: float
  teacher: float

  def reached(self, target: float) -> int | None:
    """Index of the first evaluation at or above `target`."""
    return next((i for i, value in enumerate(self.accuracy) if value >= target), None)


def train_all(jobs: Sequence[Job], root: Path, workers: int, done: Callable[[Job, Path], None]) -> None:
  """Runs the jobs whose folder is not finished, `workers` at a time, each on a core of its own.

  `done(job, folder)` is called for every job, in the calling thread, as it ends. Raises RuntimeError where a run fails.
  """
  cores = queue.SimpleQueue()
  available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(workers))
  for core in available[:workers]:
    cores.put(core)

  def run(job: Job) -> Job:
    folder = root / job.name
    if not (folder / _LAST_FILE).exists():
      core = cores.get()
      try:
        _train(job, folder, core, root / "compilation_cache")
      finally:
        cores.put(core)
    return job

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(run, job) for job in jobs]
    try:
      for future in concurrent.futures.as_completed(futures):
        job = future.result()
        done(job, root / job.name)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _train(job: Job, folder: Path, core: int, cache: Path) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  pin = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_COMPILATION_CACHE_DIR": str(cache.absolute()),
  }
  command = [*pin, sys.executable, "-m", "opd_jax.train", *job.flags, f"--workdir={folder}"]
  with open(folder / "log.txt", "w") as log:
    ended = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
  if ended.returncode:
    raise RuntimeError(f"{job.name} ended with {ended.returncode}: see {folder / 'log.txt'}")


def read_curve(folder: Path) -> Curve:
  """That of a finished run's first evaluation set."""
  record = read_run(folder)
  result = record.results()[0]
  steps = [score.step for score in result.student]
  return Curve(
    steps=steps,
    accuracy=[score.accuracy for score in result.student],
    tokens=[record.generated_tokens(step) for step in steps],
    cpu_seconds=[_sum(record, "cpu_seconds", step) for step in steps],
    cpu_seconds_compile=_sum(record, "cpu_seconds_compile", steps[-1]),
    teacher=result.teacher.accuracy,
  )


def _sum(record: RunRecord, column: str, step: int) -> float:
  return sum(row[column] for row in record.metrics if row["step"] <= step)


def cost_of_target(curve: Curve, opd: Curve) -> dict[str, float]:
  """Tokens and CPU-seconds until `SHARE` of OPD's end, alone and as shares of what OPD took; {} where it is not
  reached."""
  target = SHARE * opd.accuracy[-1]
  at, opd_at = curve.reached(target), opd.reached(target)
  if at is None:
    return {}
  return {
    "tokens_to_target": curve.tokens[at],
    "cpu_seconds_to_target": curve.cpu_seconds[at],
    "tokens_share_of_opd": curve.tokens[at] / opd.tokens[opd_at],
    "cpu_share_of_opd": curve.cpu_seconds[at] / opd.cpu_seconds[opd_at],
  }
