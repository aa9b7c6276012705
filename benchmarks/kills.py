"""Kills a run again and again, lets it go on each time, and compares with the run that nobody touched.

    python -m benchmarks.kills --out=benchmarks/results/kills [--kills=40] [--processes=1] [--seed=0]

The embedded task, a checkpoint every second step. SIGKILL comes, in turn: somewhere between start and first step; a
random while after a new row; as soon as a checkpoint begins to be written, or a few milliseconds later. Then the same
command again, until the run is through; and runs again, until there were enough kills. With two processes (of four
simulated devices each) one of them is killed, and the other ends by itself, unless it had not yet joined it.

Afterwards everything must be what an untouched run leaves: every row of metrics, evaluations and samples but for
clocks, every array of the last checkpoint bit for bit, no step twice.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

_KILLS = flags.DEFINE_integer("kills", 40, "SIGKILLs in all")
_PROCESSES = flags.DEFINE_integer("processes", 1, "processes of the run: 1, or more of four devices each")
_SEED = flags.DEFINE_integer("seed", 0, "of the instants")
_STEPS = flags.DEFINE_integer("steps", 40, "of the run")
_OUT = flags.DEFINE_string("out", None, "where to write OUT.json")

CLOCKS = ("seconds", "cpu_seconds", "compiles", "unplanned_compiles", "host_memory_peak")
SETTINGS = {
  "horizon.kind": "progressive",
  "horizon.start": 16,
  "horizon.increment": 16,
  "horizon.every": 10,
  "horizon.max": 64,
  "horizon.buckets": "32,64",
  "rollout.prompts_per_step": 8,
  "checkpoint.every": 2,
  "eval.every": 20,
  "eval.prompts": 16,
  "eval.batch": 16,
  "log.tensorboard": "false",
}
PHASES = ("start", "step", "save")
DEADLINE = 600.0  # seconds that any single wait may take
PATIENCE = 30.0  # seconds until what is left of a run is killed as well


class Run:
  """The processes of one run of a workdir."""

  def __init__(self, workdir: Path, cache: Path):
    self.workdir = workdir
    arguments = [f"--config.{name}={value}" for name, value in {**SETTINGS, "steps": _STEPS.value}.items()]
    command = [sys.executable, "-m", "opd_jax.train", "--config=configs/quickstart.py", f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with socket.socket() as probe:
      probe.bind(("127.0.0.1", 0))
      port = probe.getsockname()[1]
    self._left = self._partial()
    self.processes = []
    for index in range(_PROCESSES.value):
      place = {}
      if _PROCESSES.value > 1:
        place = {
          "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
          "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
          "JAX_NUM_PROCESSES": str(_PROCESSES.value),
          "JAX_PROCESS_ID": str(index),
        }
      with open(workdir.parent / f"{workdir.name}.{index}.log", "ab") as log:
        self.processes.append(
          subprocess.Popen([*command, *arguments], env=environment | place, stdout=log, stderr=subprocess.STDOUT)
        )

  @property
  def alive(self) -> bool:
    return all(process.poll() is None for process in self.processes)

  def wait(self) -> int:
    """The largest status of the processes."""
    return max(abs(process.wait(DEADLINE)) for process in self.processes)

  def kill(self, which: int) -> float:
    """SIGKILL to one process. Seconds until the others had ended by themselves; infinite where they had to be killed,
    as a launch script does: before all have joined, a process waits for the others for as long as jax lets it."""
    self.processes[which].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    try:
      for process in self.processes:
        process.wait(max(0.0, killed + PATIENCE - time.monotonic()))
    except subprocess.TimeoutExpired:
      for process in self.processes:
        process.kill()
        process.wait()
      return float("inf")
    return time.monotonic() - killed

  def rows(self) -> int:
    path = self.workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def saving(self) -> bool:
    """A checkpoint is being written, or was when it was killed: orbax renames its folder when all of it is there. What
    an earlier kill left does not count until it is written to again."""
    return bool(self._partial() - self._left)

  def _partial(self) -> set[tuple[str, int]]:
    found = set()
    for path in (self.workdir / "checkpoints").glob("*tmp*"):
      with contextlib.suppress(FileNotFoundError):  # it has just got its name
        found.add((path.name, path.stat().st_mtime_ns))
    return found


def await_phase(run: Run, phase: str, moments: random.Random) -> bool:
  """Waits for the instant of a kill. False where the run ended before it."""
  deadline, rows = time.monotonic() + DEADLINE, run.rows()
  if phase == "start":
    time.sleep(moments.uniform(0, 12))
    return run.alive
  while run.alive:
    if phase == "save" and run.saving():
      time.sleep(moments.choice((0.0, 0.001, 0.005, 0.02)))
      return run.alive
    if phase == "step" and run.rows() > rows:
      time.sleep(moments.uniform(0, 1.0))
      return run.alive
    if time.monotonic() > deadline:
      raise SystemExit(f"no {phase} within {DEADLINE:.0f} seconds: see {run.workdir}.0.log")
    time.sleep(0.0005)
  return False


def whole(workdir: Path) -> dict[str, Any]:
  """What a finished run leaves, clocks apart."""
  found = {}
  for name in ("metrics", "eval", "samples"):
    lines = [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]
    found[name] = [{key: value for key, value in line.items() if not key.startswith(CLOCKS)} for line in lines]
  folder = (workdir / "checkpoints" / str(_STEPS.value) / "state").absolute()
  with ocp.PyTreeCheckpointer() as reader:  # to numpy: the devices of the run are not here
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree)
    state = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
  found["arrays"] = {jax.tree_util.keystr(at): np.asarray(x) for at, x in jax.tree_util.tree_leaves_with_path(state)}
  return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
  found = [name for name in ("metrics", "eval", "samples") if ours[name] != theirs[name]]
  steps = [row["step"] for row in ours["metrics"]]
  found += ["steps"] if steps != list(range(1, _STEPS.value + 1)) else []
  names = ours["arrays"].keys() | theirs["arrays"].keys()
  return found + [
    name
    for name in sorted(names)
    if not (name in ours["arrays"] and name in theirs["arrays"])
    or ours["arrays"][name].tobytes() != theirs["arrays"][name].tobytes()
  ]


def main(_) -> None:
  logging.set_verbosity(logging.ERROR)  # orbax tells of every read
  moments, kills, runs, found = random.Random(_SEED.value), [], 0, []
  with tempfile.TemporaryDirectory() as folder:
    cache = Path(folder, "cache")
    untouched = Path(folder, "untouched")
    if Run(untouched, cache).wait():
      raise SystemExit((Path(folder) / "untouched.0.log").read_text()[-3000:])
    expected = whole(untouched)
    while len(kills) < _KILLS.value:
      workdir, status = Path(folder, f"killed{runs}"), None
      while status != 0:
        run, phase = Run(workdir, cache), PHASES[len(kills) % len(PHASES)]
        if len(kills) < _KILLS.value and await_phase(run, phase, moments):
          alone = run.kill(moments.randrange(_PROCESSES.value))
          kills.append(
            {"run": runs, "phase": phase, "rows": run.rows(), "torn": run.saving(), "survivors_seconds": alone}
          )
          print(f"kill {len(kills)} of {_KILLS.value}: {phase}, {run.rows()} rows", flush=True)
        else:
          status = run.wait()
          if status:
            raise SystemExit(Path(f"{workdir}.0.log").read_text()[-3000:])
      found.append(differences(whole(workdir), expected))
      print(f"run {runs}: {found[-1] or 'as the untouched one'}", flush=True)
      runs += 1
  answer = {
    "processes": _PROCESSES.value,
    "seed": _SEED.value,
    "kills": len(kills),
    "phases": {phase: sum(kill["phase"] == phase for kill in kills) for phase in PHASES},
    "half_written": sum(kill["torn"] for kill in kills),
    "survivors_killed": sum(kill["survivors_seconds"] == float("inf") for kill in kills),
    "runs": runs,
    "differences": found,
  }
  print(json.dumps(answer))
  if _OUT.value:
    shown = [kill | {"survivors_seconds": round(min(kill["survivors_seconds"], PATIENCE), 1)} for kill in kills]
    answer |= {"steps": _STEPS.value, "checkpoint_every": SETTINGS["checkpoint.every"], "at": shown}
    Path(f"{_OUT.value}.json").write_text(json.dumps(answer, indent=2) + "\n")
  if any(found):
    raise SystemExit("a killed run is not the untouched one")


if __name__ == "__main__":
  app.run(main)
