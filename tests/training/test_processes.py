"""Runs as the operating system sees them: two processes on one mesh, a lost process, SIGTERM."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np


def start(config, workdir, *flags, devices=1, cluster=None):
  """A training process; `cluster` is (port, processes, index)."""
  environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  if cluster:
    port, processes, index = cluster
    environment |= {
      "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      "JAX_NUM_PROCESSES": str(processes),
      "JAX_PROCESS_ID": str(index),
    }
  arguments = [f"--config={config}", f"--workdir={workdir}", "--config.horizon.kind=full", *flags]
  return subprocess.Popen(
    [sys.executable, "-m", "opd_jax.train", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment,
  )


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def start_pair(config, workdir, *flags):
  port = free_port()
  return [start(config, workdir, *flags, devices=4, cluster=(port, 2, i)) for i in range(2)]


def rows(workdir):
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for_rows(workdir, count, processes, seconds=180):
  deadline = time.monotonic() + seconds
  while len(rows(workdir)) < count:
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), [p.poll() for p in processes]
    time.sleep(0.1)


MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]


def test_two_processes_of_four_devices_are_one_of_eight(tiny_pair, tiny_config, tmp_path):
  flags = [*MESH, "--config.steps=3", f"--config.eval.path={tiny_pair}/prompts.jsonl", "--config.eval.prompts=8"]
  flags += ["--config.eval.batch=8", "--config.eval.samples=1"]
  pair = start_pair(tiny_config, tmp_path / "two", *flags)
  for process in pair:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
  single = start(tiny_config, tmp_path / "one", *flags, devices=8)
  out, _ = single.communicate(timeout=300)
  assert single.returncode == 0, out
  two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
  assert [row["step"] for row in two] == [1, 2, 3]
  for a, b in zip(two, one, strict=True):
    assert a["tokens"] == b["tokens"]
    for name in ("loss", "grad_norm", "student_entropy", "teacher_entropy"):
      np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
  marks = [
    [json.loads(line)["accuracy"] for line in (tmp_path / name / "eval.jsonl").read_text().splitlines()]
    for name in ("two", "one")
  ]
  assert marks[0] == marks[1] and len(marks[0]) == 6


def test_a_lost_process_ends_the_other_within_a_minute(tiny_config, tmp_path):
  pair = start_pair(tiny_config, tmp_path, *MESH, "--config.steps=100000")
  try:
    wait_for_rows(tmp_path, 1, pair)
    pair[1].kill()
    lost = time.monotonic()
    out, _ = pair[0].communicate(timeout=90)
    assert time.monotonic() - lost < 60
    # jax's coordination service names it: "The following tasks are unhealthy ...:", and on the next line "1".
    assert pair[0].returncode not in (0, 2) and re.search(r"tasks are unhealthy[^\n]*\n1\n", out), out[-2000:]
  finally:
    for process in pair:
      process.kill()


def test_sigterm_saves_the_step_and_the_same_command_goes_on(tiny_config, tmp_path):
  """Of two processes one is told and both stop: tests/launch, through launch/local_processes.sh."""

  def begin(steps):
    return start(tiny_config, tmp_path, f"--config.steps={steps}", "--config.checkpoint.every=100000")

  running = begin(100_000)
  wait_for_rows(tmp_path, 2, [running])
  running.send_signal(signal.SIGTERM)
  out, _ = running.communicate(timeout=120)
  assert running.returncode == 75, out
  done = len(rows(tmp_path))
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(done)]
  again = begin(done + 1)
  out, _ = again.communicate(timeout=300)
  assert again.returncode == 0, out
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, done + 2))
