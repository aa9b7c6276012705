"""`opd_jax.distill` and `load_pair` as a notebook calls them: in a process that goes on, inside an event loop."""

import asyncio
import dataclasses
import functools
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import opd_jax
from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.training import open_run, restore_student, train

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE, PAIR = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "from_python.md").read_text(), re.S)
TIMES = ("seconds", "compiles", "host_memory_peak", "cpu_seconds")

distill = functools.partial(opd_jax.distill, devices=jax.devices()[:1])


@pytest.fixture
def here(tiny_pair, tmp_path, monkeypatch):
  """here(code): runs a block of the page on one device, with the tiny models in place of those that it names."""
  for name in ("distill", "load_pair"):
    monkeypatch.setattr(opd_jax, name, functools.partial(getattr(opd_jax, name), devices=jax.devices()[:1]))
  monkeypatch.chdir(tmp_path)
  stands_for = {
    "Qwen/Qwen3-1.7B": str(tiny_pair / "student"),
    "Qwen/Qwen3-8B": str(tiny_pair / "teacher"),
    "gsm8k/train.jsonl": str(tiny_pair / "prompts.jsonl"),
    '"question"': '"prompt"',
    " = 200": " = 3\nconfig.rollout.prompts_per_step, config.rollout.max_prompt = 8, 32",
    "1024": "16",
  }

  def run(code):
    for theirs, ours in stands_for.items():
      code = code.replace(theirs, ours)
    names = {}

    async def cell():  # a notebook's code runs while the event loop of its kernel does
      exec(code, names)

    asyncio.run(cell())
    return names

  return run


@pytest.fixture(scope="module")
def config(tiny_config):
  """Six steps in one bucket."""
  flags = ["steps=6", "horizon.kind=full", "horizon.max=8", "horizon.buckets=8"]
  return load_config(tiny_config, [f"--config.{flag}" for flag in flags])


@pytest.fixture(scope="module")
def marked(config, tiny_pair):
  """The same, marked before the first step, after the fourth and after the last."""
  sets = dataclasses.replace(config.eval, path=f"{tiny_pair}/prompts.jsonl", prompts=8, batch=8, every=4)
  return dataclasses.replace(config, eval=sets)


@pytest.fixture(scope="module")
def whole(marked, tmp_path_factory):
  """That run, made without anybody looking at it."""
  workdir = tmp_path_factory.mktemp("whole")
  train(open_run(marked, workdir, jax.devices()[:1]))
  return workdir


def rows(path):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]


def same(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def test_the_example_of_the_page_runs(here, capsys):
  assert len([line for line in EXAMPLE.splitlines() if line]) == 10
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  names = here(EXAMPLE)
  assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
  run = names["run"]
  assert [row["step"] for row in run.metrics] == [1, 2, 3] and names["row"]["step"] == 3
  printed = [line.split() for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"\d [\d.e-]+ \d+", line)]
  assert printed == [[str(row[name]) for name in ("step", "loss", "tokens")] for row in run.metrics]
  exported = models.load("runs/mine-hf", dtype="float32")
  assert same(exported.params, run.student.params)  # of a closed run: that of its checkpoint


def test_the_two_models_of_the_page(here, tiny_pair):
  names = here(PAIR)
  pair = names["pair"]
  assert pair.student.params["embed_vd"].dtype == pair.teacher.params["embed_vd"].dtype == "bfloat16"
  stored = load_file(tiny_pair / "teacher" / "model.safetensors")["model.embed_tokens.weight"]
  np.testing.assert_allclose(np.asarray(pair.teacher.params["embed_vd"], np.float32), stored, rtol=2**-8)
  assert pair.vocab_size < pair.student.config.vocab_size < pair.teacher.config.vocab_size == len(stored)
  assert names["rollout"].tokens_bs.shape == (2, 3 + 64) and pair.eos_ids == (0,)
  assert names["logits_btv"].shape == (1, 3, len(stored)) and np.isfinite(names["logits_btv"]).all()


def test_who_looks_at_a_run_does_not_change_it(marked, whole, tmp_path):
  """Students taken, marks and a checkpoint out of turn, a loop left and another one: the numbers of `whole`."""
  steps, marks, looked, students = [], [], [], []
  run = distill(marked, tmp_path / "w", on_step=steps.append, on_evaluation=marks.append, quiet=True)
  assert not (tmp_path / "w").exists()
  for row in run:
    looked.append(row)
    students.append(run.student)
    if row["step"] == 2:
      break
  assert run.save() == 2
  assert [(row["model"], row["step"]) for row in run.evaluate()] == [("student", 2)]
  looked.append(next(run))
  run.finish()
  assert looked == steps[:3] and next(run, None) is None
  assert [row["step"] for row in run.metrics] == [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
  assert {row["unplanned_compiles"] for row in steps} == {0}  # copies of students are none of the run's
  assert [(row["step"], row["accuracy"]) for row in marks] == [
    (row["step"], row["accuracy"]) for row in run.evaluations
  ]
  assert rows(tmp_path / "w" / "metrics.jsonl") == rows(whole / "metrics.jsonl")
  assert [row for row in rows(tmp_path / "w" / "eval.jsonl") if row["step"] != 2] == rows(whole / "eval.jsonl")

  def saved(workdir, which):
    return restore_student(open_run(marked, workdir, jax.devices()[:1]), which)[0]

  assert same(run.student, saved(whole, "newest"))
  after_one, after_two = students  # no later step has used them up
  assert same(after_two, saved(tmp_path / "w", "2")) and not same(after_one, after_two)
  run.close()


def test_a_run_that_is_left_goes_on_from_what_it_saved(config, whole, tmp_path):
  with distill(config, tmp_path, quiet=True) as run:
    next(run)
    assert run.save() == 1
    assert next(run)["step"] == 2
  with pytest.raises(opd_jax.InputError, match="nothing to save"):
    run.save()
  with pytest.raises(ZeroDivisionError), distill(config, tmp_path, quiet=True) as run:
    assert next(run)["step"] == 2
    raise ZeroDivisionError  # of the caller: the folder is free again all the same
  with distill(config, tmp_path, quiet=True) as run:
    assert [row["step"] for row in run] == [2, 3, 4, 5, 6]
  assert rows(tmp_path / "metrics.jsonl") == rows(whole / "metrics.jsonl")


def test_stop_ends_a_run_early_and_saved(config, tmp_path):
  run = distill(config, on_step=lambda row: run.stop(), quiet=True)
  folder = run.workdir
  made = [row["step"] for row in run]
  assert made == [1, 2] and run.stopped and (folder / "checkpoints" / "2").is_dir()
  assert run.export(tmp_path / "hf") == 2
  run.close()
  assert not folder.exists() and (tmp_path / "hf" / "model.safetensors").exists()


def test_what_is_wrong_is_raised_and_nothing_is_written(config, whole, tiny_pair, tmp_path):
  values = opd_jax.defaults()
  values.student.path, values.teacher.path = str(tiny_pair / "student"), "/no/teacher"
  values.data.path = str(tiny_pair / "prompts.jsonl")
  elsewhere = {"student": {"path": "/no/student"}, "teacher": {"path": "x"}, "data": {"path": "/no/data.jsonl"}}
  for given, words in (({"stepz": 3}, "`steps`"), (values, "/no/teacher"), (elsewhere, "/no/data.jsonl")):
    with pytest.raises(opd_jax.InputError, match=words):
      distill(given, tmp_path / "w")
  with pytest.raises(opd_jax.InputError, match=r"another config.*seed"):
    distill(load_config(f"{tiny_pair}/config.py", ["--config.seed=5"]), whole)
  with pytest.raises(opd_jax.InputError, match="no checkpoint: train first"):
    distill(config, tmp_path / "w").export(tmp_path / "hf")
  with pytest.raises(opd_jax.InputError, match="no such model folder"):
    opd_jax.load_pair(str(tiny_pair / "student"), str(tiny_pair / "missing"))
  for workdir, words in (("gs://bucket/run", "is a URL"), ("", "no folder's name")):
    with pytest.raises(opd_jax.InputError, match=words):
      distill(config, workdir)
  with pytest.raises(opd_jax.InputError, match="list of devices is empty"):
    opd_jax.distill(config, tmp_path / "w", devices=[])
  assert not list(tmp_path.iterdir())


def test_importing_starts_nothing_and_every_name_is_there():
  code = "import sys, opd_jax; assert not {'jax', 'numpy', 'absl'} & set(sys.modules); print(*opd_jax.__all__)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert all(getattr(opd_jax, name).__module__.startswith("opd_jax.") for name in done.stdout.split())
  with pytest.raises(AttributeError, match="no attribute 'distil'"):
    opd_jax.distil  # noqa: B018


def test_all_commands_can_be_imported_into_one_process():
  for name in ("train", "evaluate", "export", "prepare", "report", "audit", "plan"):
    importlib.import_module(f"opd_jax.{name}")
