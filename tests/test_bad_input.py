"""Bad input from outside: one line on stderr that names it, exit status 2, no traceback, nothing saved is touched.

In process for most (a process of its own costs seconds), through the same `command_line.run` as the shell; a few as
real processes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file, save_file

from opd_jax import command_line, evaluate, export, train
from opd_jax.command_line import load_config
from opd_jax.config import to_dict
from opd_jax.telemetry.workdir import sole_writer, write_command, write_config
from tests.conftest import COMPILED_SOON


@pytest.fixture
def shell(monkeypatch, capfd):
  """shell(main, *arguments) -> (exit status, stdout, stderr), as a shell sees it."""

  def call(module, *arguments):
    monkeypatch.setattr(sys, "argv", ["opd_jax", *map(str, arguments)])
    entry = command_line.run_without_config if module is export else command_line.run
    status = 0
    try:
      entry(module.main)
    except SystemExit as stop:
      status = stop.code
    out, err = capfd.readouterr()
    return status, out, err

  return call


def is_one_line(status, err, *words):
  lines = [line for line in err.splitlines() if line.strip()]
  assert status == 2, err
  assert len(lines) == 1 and lines[0].startswith("error: "), err
  for word in words:
    assert word in lines[0], err


@pytest.fixture
def student(tiny_pair, tmp_path):
  """A copy of the student's folder, to break."""
  return shutil.copytree(tiny_pair / "student", tmp_path / "student")


def missing_key(folder):
  tensors = load_file(folder / "model.safetensors")
  del tensors["model.norm.weight"]
  save_file(tensors, folder / "model.safetensors")
  return "model.norm.weight"


def truncated(folder):
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
  return "model.safetensors"


def unknown_type(folder):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen33"}))
  return "qwen33"


def no_config(folder):
  (folder / "config.json").unlink()
  return "config.json"


def other_tokens(folder):
  text = (folder / "tokenizer.json").read_text()
  tokenizer = json.loads(text)
  vocabulary = tokenizer["model"]["vocab"]
  a, b = [token for token, index in vocabulary.items() if index in (60, 61)]
  vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  return "id 60"


@pytest.mark.parametrize("damage", [missing_key, truncated, unknown_type, no_config, other_tokens])
def test_damaged_model_folders(shell, tiny_config, student, tmp_path, damage):
  word = damage(student)
  status, _, err = shell(
    train, f"--config={tiny_config}", f"--workdir={tmp_path}/w", f"--config.student.path={student}"
  )
  is_one_line(status, err, word)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "flag, words",
  [
    ("--config.student.path=/no/such/folder", ["/no/such/folder"]),
    ("--config.student.path=nobody/no-such-model", ["nobody/no-such-model"]),
    ("--config.horizon.bukets=8", ["`buckets`"]),
    ("--config.steps=three", ["steps"]),
    ("--config.objective.kind=reverse", ["objective.kind", "`reverse_kl`"]),
    ("--config.objective.kind=sampled+0.5xjsd", ["objective.kind", "0.5xjsd"]),
    ("--config.objective.mask_first=('think',)", ["objective.mask_first", "single tokens"]),
    ("--config.horizon.max=64", ["64", "16"]),
    ("--config.mesh.tensor=3", ["mesh.tensor=3"]),
    ("--config.student.lora.rank=99", ["student.lora.rank", "at most 16"]),
    ("--config.data.path=/no/prompts.jsonl", ["/no/prompts.jsonl"]),
    ("--config.data.path= --config.data.mixture=('2*/no/a.jsonl',)", ["data.mixture", "/no/a.jsonl"]),
    ("--config.data.prompt_field=promt", ["promt", "prompt"]),
    ("--config.rollout.max_prompt=3", ["short enough"]),
    ("--config.student.path=arithmetic:unifrom/student", ["uniform"]),
    ("--config.eval.path=README.md --config.eval.grader=gsm9k", ["gsm9k", "`gsm8k`"]),
    ("--config.optimizer.learning_rate=inf", ["learning_rate", "finite"]),
    ("--config.steps=99999999999999999999", ["steps", "1,000,000"]),
    ("--config.horizon.max=3000000000 --config.horizon.buckets=linear(1)", ["horizon.max", "1,048,576"]),
    ("--workdir=gs://bucket/run", ["gs://bucket/run", "local folder"]),
    ("--config.objective.kind=1e300*reverse_kl", ["objective.kind", "at most 1e+09"]),
    ("--flagfile=/dev/zero", ["--flagfile"]),
    ("--wrkdir=x", ["wrkdir"]),
    ("extra", ["extra"]),
  ],
)
def test_bad_flags_and_paths(shell, tiny_config, tmp_path, flag, words):
  status, _, err = shell(
    train, f"--config={tiny_config}", f"--workdir={tmp_path}/w", "--config.horizon.kind=full", *flag.split()
  )
  is_one_line(status, err, *words)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "content, words",
  [
    (b"", ["empty"]),
    (b'{"prompt": "a b c"}\n{"prompt": \n', ["line 2"]),
    (b'{"prompt": "a"}\n\xff\xfe\n', ["line 2"]),
    (b'{"prompt": 3}\n', ["prompt"]),
    (b'{"question": "a"}\n', ["question"]),
  ],
)
def test_bad_prompt_files(shell, tiny_config, tmp_path, content, words):
  path = tmp_path / "prompts.jsonl"
  path.write_bytes(content)
  status, _, err = shell(train, f"--config={tiny_config}", f"--workdir={tmp_path}/w", f"--config.data.path={path}")
  is_one_line(status, err, *words)


def test_missing_arguments_and_foreign_workdirs(shell, tiny_config, tmp_path):
  status, _, err = shell(train, "--workdir=w")
  is_one_line(status, err, "--config")
  status, _, err = shell(train, f"--config={tiny_config}", "--workdir=")
  is_one_line(status, err, "--workdir")
  (tmp_path / "w").mkdir()
  (tmp_path / "w" / "config.json").write_text('{"seed": 77}')
  status, _, err = shell(train, f"--config={tiny_config}", f"--workdir={tmp_path}/w")
  is_one_line(status, err, "another config", "seed")
  assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["config.json"]
  (tmp_path / "file").write_text("x")
  status, _, err = shell(train, f"--config={tiny_config}", f"--workdir={tmp_path}/file")
  is_one_line(status, err, "is a file")


def test_evaluate_and_export_want_a_run(shell, tiny_pair, tiny_config, tmp_path):
  status, _, err = shell(evaluate, f"--config={tiny_config}", f"--workdir={tmp_path}/none")
  is_one_line(status, err, "eval.path")
  path = f"--config.eval.path={tiny_pair}/prompts.jsonl"
  status, _, err = shell(evaluate, f"--config={tiny_config}", f"--workdir={tmp_path}/none", path)
  is_one_line(status, err, "checkpoint")
  status, _, err = shell(export, f"--workdir={tmp_path}/none", f"--out={tmp_path}/out")
  is_one_line(status, err, "config.json")
  status, _, err = shell(export, f"--workdir={tmp_path}/none", "--out=")
  is_one_line(status, err, "--out")


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--model=/no/such/folder"], ["/no/such/folder"]),
    (["--model=", "--out=OUT"], ["--out", "--model"]),
    (["--model=STUDENT", "--workdir=runs/mine"], ["--workdir=runs/mine", "--out"]),
    (["--model=STUDENT", "--step=4"], ["--step=4", "--model"]),
    (["--model=STUDENT", "--config.eval.batch=12"], ["eval.batch", "multiple of 8"]),
    (["--model=STUDENT", "--config.eval.sets=('more = /no/more.jsonl',)"], ["eval.sets", "/no/more.jsonl"]),
    (["--model=STUDENT", "--out=gs://bucket/marks"], ["--out=gs://bucket/marks"]),
    (["--model=STUDENT", "--out=README.md"], ["--out=README.md is a file"]),
    (
      ["--model=STUDENT", "--out=OTHER", "--config.seed=5", "--config.eval.grader=gsm8k"],
      ["it differs in seed, eval.grader)"],
    ),
    (["--config.eval.keep_best=prompts gredy"], ["eval.keep_best", "`prompts greedy`"]),
  ],
)
def test_evaluate_with_what_cannot_be_marked(shell, tiny_pair, tiny_config, tmp_path, flags, words):
  path = f"--config.eval.path={tiny_pair}/prompts.jsonl"
  other = tmp_path / "other"  # another config's, but in nothing that these marks depend on
  write_config(other, to_dict(load_config(tiny_config, [path, "--config.steps=9", "--config.eval.batch=2"])))
  stands_for = {"STUDENT": str(tiny_pair / "student"), "OUT": f"{tmp_path}/out", "OTHER": str(other)}
  filled = [re.sub("[A-Z]{3,}$", lambda name: stands_for.get(name[0], name[0]), flag) for flag in flags]
  # absl's flags outlive a call: those that another test may have given are taken back.
  workdir = f"--workdir={'' if filled[0].startswith('--model=/') else tmp_path / 'none'}"
  fixed = [f"--config={tiny_config}", workdir, "--model=", "--out=", "--step=newest", path]
  status, _, err = shell(evaluate, *fixed, *filled)
  is_one_line(status, err, *words)
  assert not (tmp_path / "out").exists() and not (tmp_path / "none").exists()
  assert [file.name for file in other.iterdir()] == ["config.json"]
  assert shell(evaluate, *fixed)[0] == 2


def process(module, *arguments, **environment):
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-m", f"opd_jax.{module}", *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, "XLA_FLAGS": COMPILED_SOON, **environment},
    timeout=120,
  )
  return done.returncode, done.stdout, done.stderr, time.monotonic() - started


@pytest.mark.parametrize(
  "module, arguments, words",
  [
    ("train", ["--config=/no/config.py", "--workdir=/tmp/never"], ["/no/config.py"]),
    ("train", ["--config=CONFIG", "--workdir=/tmp/never", "--config.horizon.bukets=8"], ["`buckets`"]),
    ("train", ["--config=RAISES", "--workdir=/tmp/never"], ["line 2", "ZeroDivisionError"]),
    (
      "train",
      ["--config=configs/quickstart.py", "--workdir=/tmp/never", "--config.teacher.path=/no/teacher"],
      ["/no/teacher"],
    ),
    ("export", ["--workdir=/no/run", "--out=/tmp/never"], ["/no/run"]),
    ("report", ["/no/run"], ["/no/run"]),
    ("train", ["--config=CONFIG", "--workdir=/tmp/never\udcff"], ["is not UTF-8"]),
  ],
)
def test_real_processes_end_with_one_line_and_status_2(tiny_config, tmp_path, module, arguments, words):
  raises = tmp_path / "raises.py"
  raises.write_text("def get_config():\n  return 1 / 0\n")
  filled = [a.replace("CONFIG", tiny_config).replace("RAISES", str(raises)) for a in arguments]
  # An empty cache: what is wrong must be found before the embedded task would be trained.
  status, out, err, seconds = process(module, *filled, OPD_JAX_CACHE=str(tmp_path / "cache"))
  is_one_line(status, err, *words)
  assert "Traceback" not in out + err and seconds < 60


def test_a_platform_that_is_not_here_is_one_line(tiny_config, tmp_path):
  status, _, err, _ = process("train", f"--config={tiny_config}", f"--workdir={tmp_path}/w", JAX_PLATFORMS="cuda")
  assert status == 2 and err.strip().splitlines()[-1].startswith("error: jax finds no devices"), err
  assert "Traceback" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_output_that_reaches_nobody_is_one_line(tmp_path):
  words = [sys.executable, "-m", "opd_jax.report", "--help"]
  with open("/dev/full", "w") as full:
    done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
  is_one_line(done.returncode, done.stderr, "cannot write to standard output", "No space left")


def test_a_reader_that_goes_away_is_one_line(tiny_config, tmp_path):
  words = [sys.executable, "-m", "opd_jax.train", f"--config={tiny_config}", f"--workdir={tmp_path}/w"]
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
  os.close(writer)
  is_one_line(done.returncode, done.stderr, "cannot write to standard output", "Broken pipe")


def test_a_refused_run_leaves_the_command_of_the_running_one(shell, tiny_config, tmp_path):
  write_command(tmp_path, "opd_jax.train", ["--config.steps=3"])
  before = (tmp_path / "command.sh").read_bytes()
  with sole_writer(tmp_path):
    status, _, err = shell(train, f"--config={tiny_config}", f"--workdir={tmp_path}")
  is_one_line(status, err, "another run is writing")
  assert (tmp_path / "command.sh").read_bytes() == before
