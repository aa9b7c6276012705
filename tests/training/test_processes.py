"""Runs as the operating system sees them: two processes on one mesh, a lost process, SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from tests.conftest import COMPILED_SOON


def environment(devices, cluster=None):
  """Of a process with so many devices; `cluster` is (port, processes, index)."""
  alone = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {COMPILED_SOON}"}
  if not cluster:
    return alone
  port, processes, index = cluster
  named = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": processes, "JAX_PROCESS_ID": index}
  return alone | {name: str(value) for name, value in named.items()}


def start(config, workdir, *flags, devices=1, cluster=None):
  """A training process; `cluster` is (port, processes, index)."""
  arguments = [f"--config={config}", f"--workdir={workdir}", "--config.horizon.kind=full", *flags]
  return subprocess.Popen(
    [sys.executable, "-m", "opd_jax.train", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=environment(devices, cluster),
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


def lost_line(process, how):
  return f"opd_jax: process {process} of 2 was lost: {how}; run the same command again on all hosts"


def test_a_lost_process_ends_the_other_within_a_minute(tiny_config, tmp_path):
  pair = start_pair(tiny_config, tmp_path, *MESH, "--config.steps=100000")
  try:
    wait_for_rows(tmp_path, 1, pair)
    pair[1].kill()
    lost = time.monotonic()
    out, _ = pair[0].communicate(timeout=90)
    assert time.monotonic() - lost < 60
    assert pair[0].returncode not in (0, 2, 75) and lost_line(1, "its connection broke off") in out.splitlines(), out
  finally:
    for process in pair:
      process.kill()


CLUSTER = """
import sys, time
import jax
from opd_jax.distributed import any_process, cluster
with cluster():
  any_process(False)
  print("joined", flush=True)
  word = sys.stdin.readline().strip()
  if word == "raise":
    raise RuntimeError("disk full")
  if word != "leave":
    time.sleep(300)
print("left", flush=True)
"""


def start_cluster(processes):
  """Processes that have joined and wait for a word on stdin, "raise" or "leave"."""
  port, pipe = free_port(), subprocess.PIPE
  started = [
    subprocess.Popen(
      [sys.executable, "-c", CLUSTER],
      stdin=pipe,
      stdout=pipe,
      stderr=subprocess.STDOUT,
      text=True,
      env=environment(1, (port, processes, i)),
    )
    for i in range(processes)
  ]
  for process in started:
    while (line := process.stdout.readline()) != "joined\n":
      assert line, process.wait()
  return started


MANY_COLLECTIVES = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from opd_jax.distributed import cluster

def collectives(x):
  for k in range(12):
    if k % 3 == 2:
      gather = lambda _, y: jnp.tanh(jax.lax.all_gather(y, "a", axis=0, tiled=True)[: len(y)] + k)
      yield jax.lax.fori_loop(0, 3, gather, x * (k + 1))
    else:
      yield jax.lax.psum(jnp.sin(x * (k + 1)) @ jnp.ones((256, 256)), "ab"[k % 2])

with cluster():
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
  rows = P(("a", "b"))
  step = jax.shard_map(lambda x: sum(collectives(x)), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
  step = jax.jit(step)
  ones = np.ones((256, 256), np.float32)
  x = jax.make_array_from_callback((8 * 256, 256), NamedSharding(mesh, rows), lambda _: ones)
  for _ in range(60):
    done = step(x)
  jax.block_until_ready(done)
"""


def test_collectives_that_are_under_way_at_once_leave_each_other_a_thread():
  """With as many threads as devices, which is what XLA has of itself, the two processes wait for ever."""
  command, port = [sys.executable, "-c", MANY_COLLECTIVES], free_port()
  pair = [subprocess.Popen(command, env=environment(4, (port, 2, i))) for i in range(2)]
  try:
    assert [process.wait(60) for process in pair] == [0, 0]
  finally:
    for process in pair:
      process.kill()


def test_the_loss_of_the_process_that_coordinates_is_named_too():
  first, second = start_cluster(2)
  first.kill()
  out, _ = second.communicate(timeout=60)
  assert second.returncode not in (0, 2, 75) and lost_line(0, "its connection broke off") in out.splitlines(), out


def test_all_others_hear_who_failed_and_have_time_to_end_by_themselves():
  first, second, third = start_cluster(3)
  third.stdin.write("raise\n")
  third.stdin.flush()
  time.sleep(1)
  assert first.poll() is None and second.poll() is None
  for process in (first, second):
    out, _ = process.communicate(timeout=60)
    how = "it ended with an error, which is in its own output"
    assert process.returncode == 1 and lost_line(2, how).replace("of 2", "of 3") in out.splitlines(), out
  assert third.wait(60) != 0 and "disk full" in third.stdout.read()


def test_processes_that_end_in_order_say_nothing():
  """One after the other, each by itself: jax waits for all at its own end."""
  pair = start_cluster(2)
  for process in pair:
    process.stdin.write("leave\n")
    process.stdin.flush()
    assert process.stdout.readline() == "left\n"
    time.sleep(0.5)
  for process in pair:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "lost" not in out, out


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
