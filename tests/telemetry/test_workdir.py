"""A run's folder: appends, resumes, the command to paste, and a disk that is full."""

import glob
import os
import resource
import shlex
import signal
import struct
import subprocess
import sys
import textwrap

import pytest
from tensorboardX.proto.event_pb2 import Event

from opd_jax.errors import InputError
from opd_jax.telemetry.events import EventFile
from opd_jax.telemetry.rows import read_rows
from opd_jax.telemetry.workdir import (
  RunLog,
  make_workdir,
  more_rows,
  read_config,
  sole_writer,
  write_command,
  write_config,
)


def metrics_row(step: int, **more) -> dict:
  return {"step": step, "loss": 1 / (step + 3), "tokens": 10, "seconds_step": 0.5} | more


def eval_row(step: int, model: str = "student") -> dict:
  return {"step": step, "set": "s", "model": model, "k": 1, "temperature": 0, "accuracy": 0.5, "stderr": 0.1}


def events(workdir) -> list[Event]:
  """TensorBoard's own framing, read without it: length (uint64), its crc, the event, its crc."""
  found = []
  for path in sorted(glob.glob(f"{workdir}/tensorboard/*tfevents*")):
    data = open(path, "rb").read()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      found.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def test_five_and_resume_and_five_is_ten(tmp_path):
  with RunLog(tmp_path / "whole") as log:
    log.evaluation(eval_row(0))
    for step in range(1, 11):
      log.step(metrics_row(step))
  with RunLog(tmp_path / "parts") as log:
    log.evaluation(eval_row(0))
    for step in range(1, 8):
      log.step(metrics_row(step))
    log.evaluation(eval_row(7))
  with RunLog(tmp_path / "parts", resume_step=5) as log:
    assert log.evaluations == [eval_row(0)]
    for step in range(6, 11):
      log.step(metrics_row(step))
  for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_starting_afresh_empties_the_files(tmp_path):
  for _ in range(2):
    with RunLog(tmp_path) as log:
      log.evaluation(eval_row(0))
      log.step(metrics_row(1))
      log.samples([{"step": 0, "prompt": "p"}, {"step": 0, "prompt": "q"}])
  assert [len(read_rows(tmp_path / f"{name}.jsonl")) for name in ("metrics", "eval", "samples")] == [1, 1, 2]


def test_a_killed_process_loses_no_finished_step(tmp_path):
  script = f"""
    import os, signal
    from opd_jax.telemetry.workdir import RunLog
    log = RunLog({str(tmp_path)!r})
    for step in (1, 2, 3):
      log.step({{"step": step, "loss": 0.1 * step}})
    os.kill(os.getpid(), signal.SIGKILL)
  """
  killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
  assert killed.returncode == -signal.SIGKILL
  assert read_rows(tmp_path / "metrics.jsonl") == [{"step": s, "loss": 0.1 * s} for s in (1, 2, 3)]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_line_and_the_next_start_mends_the_file(tmp_path, tensorboard):
  # A limit on the size of a file fails a write in its middle, as a full disk does.
  script = f"""
    import resource, signal, sys
    from opd_jax.errors import InputError
    from opd_jax.telemetry.workdir import RunLog
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
      with RunLog({str(tmp_path)!r}, tensorboard={tensorboard}) as log:
        for step in range(1, 1000):
          log.step({{"step": step, "loss": 0.5}})
    except InputError as error:
      print(error)
      sys.exit(2)
  """
  full = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
  assert (full.returncode, full.stderr) == (2, "")
  assert full.stdout.startswith(f"cannot write {tmp_path}/metrics.jsonl: File too large; free some space")
  assert not (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
  RunLog(tmp_path, resume_step=1000, tensorboard=False).close()
  left = read_rows(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in left] == list(range(1, len(left) + 1)) and len(left) > 10
  assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("name, words", [("file", "is a file"), ("file/below", "cannot write ")])
def test_a_workdir_that_cannot_be_is_one_line(tmp_path, name, words):
  (tmp_path / "file").write_text("not a folder")
  with pytest.raises(InputError, match=rf"{words}.*choose another --workdir"):
    RunLog(tmp_path / name)
  with pytest.raises(InputError, match="gcsfuse"):
    make_workdir("gs://bucket/run")


def test_tensorboard_gets_the_same_numbers(tmp_path):
  with RunLog(tmp_path) as log:
    log.step(metrics_row(1, note="text is no scalar", nothing=float("nan")))
    log.evaluation(eval_row(1))
    log.evaluation(eval_row(1) | {"k": 4, "temperature": 0.7})
  with RunLog(tmp_path, resume_step=0) as log:
    log.step(metrics_row(1))
  found = events(tmp_path)
  scalars = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
  assert {tag for _, tag, _ in scalars} == {
    *(f"train/{name}" for name in ("loss", "tokens", "seconds_step")),
    *(f"eval/s/student/{how}/{name}" for how in ("k1_t0", "k4_t0.7") for name in ("accuracy", "stderr")),
  }
  assert [(step, value) for step, tag, value in scalars if tag == "train/loss"] == [(1, 0.25), (1, 0.25)]
  restarts = [event.step for event in found if event.HasField("session_log")]
  assert restarts == [0, 1]  # TensorBoard drops what earlier files hold from there on


def test_events_that_a_full_disk_refuses_are_one_line(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  file = EventFile(tmp_path / "tensorboard", 0)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(InputError, match=r"cannot write .*/tensorboard: File too large"):
      file.scalars({f"value_{i}": i / 7 for i in range(5000)}, 1)  # more than waits in a buffer
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_host_that_does_not_write_leaves_no_trace(tmp_path):
  with RunLog(tmp_path / "run", writes=False) as log:
    log.step(metrics_row(1))
    log.evaluation(eval_row(1))
    log.samples([{"step": 1}])
    assert log.evaluations == []
  assert not (tmp_path / "run").exists()


def test_the_command_can_be_executed_as_it_stands(tmp_path, monkeypatch):
  started_in = tmp_path / "a folder; with 'signs'"
  started_in.mkdir()
  (started_in / "echo_module.py").write_text("import os, sys\nprint([os.getcwd(), *sys.argv[1:]])")
  arguments = ["--config=x.py:a b", "--config.data.path=$HOME/`x`'\"\n*"]
  monkeypatch.chdir(started_in)
  path = write_command(tmp_path / "run", "echo_module", arguments)
  monkeypatch.chdir(tmp_path)
  assert os.access(path, os.X_OK)
  for command in ([str(path)], ["sh", "-c", f"sh {shlex.quote(str(path))}"]):
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == repr([str(started_in), *arguments])


def test_the_config_comes_back(tmp_path):
  assert read_config(tmp_path) == {}
  write_config(tmp_path, {"seed": 0, "horizon": {"buckets": (16, 32), "rho": 0.1}, "name": "ü"})
  assert read_config(tmp_path) == {"seed": 0, "horizon": {"buckets": [16, 32], "rho": 0.1}, "name": "ü"}
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match=r"config\.json"):
    read_config(tmp_path)


def test_marks_are_added_beside_a_run_that_goes_on_and_mend_what_a_dead_one_left(tmp_path):
  metrics, marks = tmp_path / "metrics.jsonl", tmp_path / "eval.jsonl"
  mark = {"step": 0, "set": "s", "model": "student", "accuracy": 0.5}
  with sole_writer(tmp_path), RunLog(tmp_path, tensorboard=False) as run:
    run.step({"step": 1})
    with open(metrics, "ab", buffering=0) as writing:
      writing.write(b'{"step": 2, "lo')
      with more_rows(tmp_path) as log:
        log.evaluation(mark)
      writing.write(b'ss": 0.5}\n')
    run.step({"step": 3})
  assert [row["step"] for row in read_rows(metrics)] == [1, 2, 3] and read_rows(marks) == [mark]
  with open(marks, "ab") as file:
    file.write(b'{"step": 4, "se')  # killed there
  with more_rows(tmp_path) as log:
    log.evaluation(mark)
    with pytest.raises(InputError, match="another run is writing"), sole_writer(tmp_path):
      pass
  assert read_rows(marks) == [mark, mark]
