"""Exit status 75 and signals: what the launch scripts do with programs that end in every way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import write_program

ROOT = Path(__file__).resolve().parents[2]

# Counts its starts in the file RUNS; then sleeps until SIGTERM, "saves" for a moment and ends with status 75.
SAVES_ON_SIGTERM = """
import os, signal, sys, time
def save(*_):
  time.sleep(0.3)
  print("saved", flush=True)
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
with open(os.environ["RUNS"], "a") as runs:
  runs.write(f"{os.getpid()}\\n")
time.sleep(60)
sys.exit(1)
"""


@pytest.fixture
def runs(environment, tmp_path) -> Path:
  """A file with a line for each start of a program."""
  environment["RUNS"] = str(tmp_path / "runs")
  (tmp_path / "runs").touch()
  return tmp_path / "runs"


def count(runs: Path) -> int:
  return len(runs.read_text().split())


def wait_for_starts(runs: Path, starts: int) -> list[int]:
  """The pids of the programs started so far, once there are `starts` of them."""
  deadline = time.monotonic() + 60
  while count(runs) < starts:
    assert time.monotonic() < deadline, f"{count(runs)} of {starts} started"
    time.sleep(0.02)
  return [int(pid) for pid in runs.read_text().split()]


def start(environment, *command: str) -> subprocess.Popen:
  pipe = subprocess.PIPE
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
  )


def test_a_preempted_command_is_started_again(launch, runs):
  program = 'echo x >>"$RUNS"; [ "$(wc -l <"$RUNS")" -ge 3 ] || exit 75; echo "$1"'
  result = launch("restart.sh", "bash", "-c", program, "bash", "a b's")
  assert (result.returncode, result.stdout, count(runs)) == (0, "a b's\n", 3)
  assert result.stderr.count("starting again") == 2


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_any_other_end_is_the_end(status, launch, runs):
  result = launch("restart.sh", "bash", "-c", f'echo x >>"$RUNS"; exit {status}')
  assert (result.returncode, count(runs)) == (status, 1)


def test_restarts_have_an_end(launch, runs):
  result = launch("restart.sh", "bash", "-c", 'echo x >>"$RUNS"; exit 75')
  assert (result.returncode, count(runs)) == (75, 101)


def test_a_signal_to_the_command_alone_starts_it_again(environment, runs):
  with start(environment, "launch/restart.sh", sys.executable, "-c", SAVES_ON_SIGTERM) as restart:
    os.kill(wait_for_starts(runs, 1)[0], signal.SIGTERM)
    os.kill(wait_for_starts(runs, 2)[1], signal.SIGKILL)
    assert restart.wait(30) == 128 + signal.SIGKILL
    assert restart.stdout.read() == "saved\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_script_saves_and_stops(number, environment, runs):
  with start(environment, "launch/restart.sh", sys.executable, "-c", SAVES_ON_SIGTERM) as restart:
    wait_for_starts(runs, 1)
    restart.send_signal(number)
    assert restart.wait(30) == 75
    assert (restart.stdout.read(), count(runs)) == ("saved\n", 1)


def test_a_script_hands_its_place_to_the_run(environment, runs):
  """local_cpu_mesh.sh is gone once the run has started: a signal to its pid reaches the run."""
  with start(environment, "launch/local_cpu_mesh.sh", "--", sys.executable, "-c", SAVES_ON_SIGTERM) as script:
    wait_for_starts(runs, 1)
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 75


def test_processes_find_their_places(launch):
  program = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS $JAX_PLATFORMS $XLA_FLAGS $1"'
  arguments = ("--processes=3", "--devices=2", "--port=12345", "--", "bash", "-c", program, "bash", "a b")
  result = launch("local_processes.sh", *arguments)
  assert result.returncode == 0
  flags = "cpu --xla_force_host_platform_device_count=2"
  assert sorted(result.stdout.splitlines()) == [f"{k} of 3 at 127.0.0.1:12345 {flags} a b" for k in range(3)]


def test_processes_form_one_jax_program(launch):
  """A sum over all devices of both processes, with nothing but what the script sets."""
  program = """
import os, jax
jax.distributed.initialize(
  os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
)
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows = jax.make_array_from_callback(
  (8,), jax.NamedSharding(mesh, jax.P("data")), lambda index: jax.numpy.arange(8.0)[index]
)
print(jax.process_index(), jax.local_device_count(), float(jax.jit(jax.numpy.sum)(rows)))
"""
  result = launch("local_processes.sh", "--", sys.executable, "-c", program)
  assert result.returncode == 0, result.stderr
  sums = [line for line in result.stdout.splitlines() if not line.startswith("[Gloo]")]  # its notes come on stdout
  assert sorted(sums) == ["0 4 28.0", "1 4 28.0"]


def test_the_first_failure_is_the_status(launch):
  program = 'if [ "$JAX_PROCESS_ID" = 1 ]; then exit 3; fi; sleep 1; exit 4'
  result = launch("local_processes.sh", "--port=12345", "--", "bash", "-c", program)
  assert result.returncode == 3
  assert "process 1 ended with status 3" in result.stderr


def test_a_process_that_hangs_is_killed_with_its_children(environment, runs):
  """Process 0 hangs in a child of its own and heeds no SIGTERM; process 1 fails."""
  program = """
if [ "$JAX_PROCESS_ID" = 1 ]; then until [ -s "$RUNS" ]; do sleep 0.1; done; exit 3; fi
trap "" TERM
sleep 61 & echo $! >>"$RUNS"; wait
"""
  command = ("launch/local_processes.sh", "--port=12345", "--patience=1", "--", "bash", "-c", program)
  with start(environment, *command) as script:
    assert script.wait(30) == 3
    assert "process(es) 0 still ran after 1 seconds and are killed" in script.stderr.read()
  child = wait_for_starts(runs, 1)[0]
  deadline = time.monotonic() + 10
  while is_running(child):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def is_running(pid: int) -> bool:
  """False for a pid that is gone, and for one that has ended but that nobody has asked for yet."""
  status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
  return bool(status) and not status.startswith("Z")


def test_a_signal_saves_in_every_process(environment, runs):
  with start(
    environment, "launch/local_processes.sh", "--port=12345", "--", sys.executable, "-c", SAVES_ON_SIGTERM
  ) as script:
    wait_for_starts(runs, 2)
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 75
    assert (script.stdout.read(), count(runs)) == ("saved\nsaved\n", 2)


# A Google cloud of one machine: a home folder that `create` makes and `delete` removes. `ssh` runs its command there,
# as sshd does: by a shell, in the home folder. The training is a stand-in that reports its arguments; how each of its
# starts ends is the next word of the file FATES: an exit status, or `preempted`: the whole machine disappears.
GCLOUD = r"""
echo "$4 ${*:5}" >>"$CALLS"
home=$HOME/machine
case $4 in
  create) mkdir "$home" ;;
  describe) echo ACTIVE ;;
  scp) cp "$5" "$home/${6#*:}" ;;
  delete) rm -rf "$home" ;;
  ssh)
    cd "$home" 2>/dev/null || exit 255
    for argument; do case $argument in --command=*) HOME=$home exec bash -c "${argument#--command=}" ;; esac; done
    ;;
esac
"""
# `git archive` of the last commit: here of the files as they are, so that the test is of them.
GIT_ARCHIVE = r"""
for argument; do
  case $argument in --output=*) tar -czf "${argument#--output=}" --transform=s,^,opd_jax/, launch ./*.txt ;; esac
done
"""
# `python3 -m uv` on the machine: makes the stand-in for its Python.
UV = r"""
mkdir -p .venv/bin
cat >.venv/bin/python <<'PYTHON'
#!/usr/bin/env bash
printf '%s\n' "$@" >>"$ARGUMENTS"
read -r fate <"$FATES"
sed -i 1d "$FATES"
[ "$fate" = preempted ] || exit "$fate"
rm -rf "$(dirname "$PWD")"
PYTHON
chmod +x .venv/bin/python
"""


@pytest.fixture
def cloud(environment, tmp_path):
  """cloud(FATE...) makes the stubs and returns the files that record calls to gcloud and the training's arguments."""

  def make(*fates: str) -> tuple[Path, Path]:
    stubs = tmp_path / "stubs"
    write_program(stubs / "gcloud", GCLOUD)
    write_program(stubs / "git", GIT_ARCHIVE)
    write_program(stubs / "python3", UV)
    (tmp_path / "fates").write_text("".join(f"{fate}\n" for fate in fates))
    environment.update(FATES=str(tmp_path / "fates"), ARGUMENTS=str(tmp_path / "arguments"), TMPDIR=str(tmp_path))
    return Path(environment["CALLS"]), tmp_path / "arguments"

  return make


TPU = ("--name=opd", "--zone=us-west4-a", "--poll=1")
TRAINING = ("--config=configs/quickstart.py", "--workdir=runs/a b's $HOME")
ENTRY_POINT = ["-m", "opd_jax.train", *TRAINING]


def test_tpu_vm_from_create_to_delete(cloud, launch, tmp_path):
  """The run on the machine gets its arguments unchanged, is started again after 75, and leaves its status."""
  calls, arguments = cloud("75", "0")
  for verb, options in (("create", ["--type=v6e-8"]), ("setup", []), ("run", TRAINING)):
    result = launch("tpu_vm.sh", verb, *TPU, *options)
    assert result.returncode == 0, result.stderr
  status = tmp_path / "machine/opd_jax/train.status"
  deadline = time.monotonic() + 30
  while not status.exists() or not status.read_text():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert status.read_text() == "0\n"
  assert arguments.read_text().splitlines() == 2 * ENTRY_POINT
  assert "starting again" in (tmp_path / "machine/opd_jax/train.log").read_text()
  assert launch("tpu_vm.sh", "delete", *TPU).returncode == 0
  assert not (tmp_path / "machine").exists()
  assert [line.split()[0] for line in calls.read_text().splitlines()] == ["create", "scp", "ssh", "ssh", "delete"]


@pytest.mark.parametrize("last", ["0", "2"])
def test_supervise_replaces_machines_that_are_taken_away(last, cloud, launch):
  calls, arguments = cloud("preempted", "75", last)
  result = launch("tpu_vm.sh", "supervise", *TPU, "--type=v5litepod-16", "--queued", "--spot", *TRAINING)
  assert result.returncode == int(last)
  assert result.stderr.count("the machines were taken away") == 1
  assert arguments.read_text().splitlines() == 3 * ENTRY_POINT
  verbs = [line.split()[0] for line in calls.read_text().splitlines()]
  assert (verbs.count("create"), verbs.count("delete"), verbs.count("scp")) == (2, 1, 2)
