"""The local launch scripts train for real: a tiny pair on eight simulated devices, of one process and of two."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workdir(tmp_path):
  return tmp_path / "a run"


@pytest.fixture
def arguments(tiny_config, workdir):
  """What both scripts get; the mesh and the horizon of tests/training/test_processes.py, which are compiled once."""
  mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.horizon.kind=full")
  return (f"--python={sys.executable}", f"--config={tiny_config}", f"--workdir={workdir}", *mesh)


def steps(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def test_local_cpu_mesh(launch, arguments, workdir):
  result = launch("local_cpu_mesh.sh", *arguments, "--config.steps=2")
  assert result.returncode == 0, result.stderr
  assert steps(workdir) == [1, 2]
  wrong = launch("local_cpu_mesh.sh", *arguments, "--devices=6")
  assert wrong.returncode == 2
  assert "does not multiply to the 6 device(s) at hand" in wrong.stderr


def test_local_processes_stop_on_sigterm_and_go_on(environment, launch, arguments, workdir):
  command = ["launch/local_processes.sh", *arguments, "--config.steps=100000", "--config.checkpoint.every=100000"]
  with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as script:
    deadline = time.monotonic() + 240
    while len(steps(workdir)) < 2:
      assert time.monotonic() < deadline and script.poll() is None, script.stdout.read()
      time.sleep(0.1)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=120)
    assert script.returncode == 75, output
  done = len(steps(workdir))
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(done)]
  result = launch("local_processes.sh", *arguments, f"--config.steps={done + 1}", "--config.checkpoint.every=100000")
  assert result.returncode == 0, result.stderr
  assert steps(workdir) == list(range(1, done + 2))
