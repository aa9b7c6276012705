"""The four commands one after the other, as real processes, without torch or TensorFlow to import; and the way out to
transformers."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.training import open_run, restore_student
from tests.conftest import COMPILED_SOON

# What a plain install does not have must not be needed: these imports fail in the child.
WITHOUT = """
import runpy, sys
sys.modules.update(torch=None, tensorflow=None)
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


SECRETS = {"HF_TOKEN": "hf_aSecretOfTheHub", "WANDB_API_KEY": "aSecretOfWeightsAndBiases"}


def command(module, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", WITHOUT, f"opd_jax.{module}", *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, **SECRETS, "XLA_FLAGS": COMPILED_SOON},
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def trained(tiny_pair, tiny_config, tmp_path_factory):
  folder = tmp_path_factory.mktemp("commands")
  flags = [f"--config.eval.path={tiny_pair}/prompts.jsonl", "--config.eval.prompts=8", "--config.eval.batch=8"]
  arguments = [f"--config={tiny_config}", f"--workdir={folder}/run", *flags, "--config.log.tensorboard=True"]
  return folder, arguments, command("train", *arguments)


def test_train_leaves_a_whole_workdir_and_a_closing_table(trained):
  folder, _, out = trained
  present = {path.name for path in (folder / "run").iterdir()}
  wanted = "config.json command.sh metrics.jsonl eval.jsonl samples.jsonl report.html tensorboard checkpoints"
  assert set(wanted.split()) <= present
  assert any((folder / "run" / "tensorboard").iterdir())
  for word in ("step 4/4", "before", "after", "teacher", "generated", "compiles"):
    assert word in out
  assert os.access(folder / "run" / "command.sh", os.X_OK)


def test_no_secret_of_the_environment_is_written_down(trained):
  folder, _, out = trained
  files = [path for path in (folder / "run").rglob("*") if path.is_file()]
  for secret in SECRETS.values():
    assert secret not in out and not any(secret.encode() in path.read_bytes() for path in files)
  assert len(files) > 10


def test_evaluate_adds_rows_and_drops_none(trained):
  folder, arguments, _ = trained
  before = (folder / "run" / "eval.jsonl").read_text().splitlines()
  command("evaluate", *arguments)
  after = (folder / "run" / "eval.jsonl").read_text().splitlines()
  assert after[: len(before)] == before and len(after) == len(before) + 1

  def marks(line):
    return {key: value for key, value in json.loads(line).items() if key != "seconds"}

  assert marks(after[-1]) == marks(before[-1])  # the same student, the same questions


def test_any_folder_can_be_marked_and_twice_gives_the_same_answers(trained, tiny_pair):
  folder, arguments, _ = trained
  config = [argument for argument in arguments if not argument.startswith("--workdir")]
  out = [command("evaluate", *config, f"--model={tiny_pair}/student", f"--out={folder}/{n}") for n in "ab"]
  assert str(tiny_pair / "student")[-8:] in out[0] and "pass@k" in out[0]
  first, second = ((folder / n / "samples.jsonl").read_text() for n in "ab")
  assert first == second and first.count("\n") == 4
  rows = [json.loads((folder / n / "eval.jsonl").read_text()) for n in "ab"]
  assert rows[0].pop("seconds") and rows[1].pop("seconds") and rows[0] == rows[1]
  # It is the student that the run began with.
  (before,) = (
    row
    for line in (folder / "run" / "eval.jsonl").read_text().splitlines()
    if (row := json.loads(line))["step"] == 0 and row["model"] == "student"
  )
  assert {key: before[key] for key in rows[0] if key != "model"} == {k: v for k, v in rows[0].items() if k != "model"}


def test_an_exported_student_is_the_same_model_in_transformers(trained):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM, AutoTokenizer

  folder, arguments, _ = trained
  command("export", f"--workdir={folder}/run", f"--out={folder}/hf", "--step=4")
  run = open_run(load_config(arguments[0].partition("=")[2], arguments[2:]), folder / "run", jax.devices()[:1])
  student, step = restore_student(run)
  assert step == 4
  tokens = np.random.default_rng(0).integers(0, 250, (3, 40))
  reference = AutoModelForCausalLM.from_pretrained(folder / "hf")
  with torch.no_grad():
    theirs = reference(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(models.logits(student, tokens), theirs, atol=1e-4)
  start = models.load(run.student_path, dtype="float32")
  assert not np.allclose(models.logits(start, tokens), theirs, atol=1e-3)  # it has learned something
  assert AutoTokenizer.from_pretrained(folder / "hf").eos_token == "<|endoftext|>"


def test_report_is_written_for_one_and_for_several_runs(trained):
  folder, _, _ = trained
  command("report", folder / "run")
  command("report", folder / "run", folder / "run", f"--out={folder}/both.html")
  assert "<svg" in (folder / "both.html").read_text()


def test_audit_shows_the_pair_and_leaves_nothing(trained):
  folder, arguments, out = trained
  before = sorted(folder.iterdir())
  shown = command("audit", arguments[0]).splitlines()
  assert sorted(folder.iterdir()) == before
  table = [line for line in shown if "|" in line]
  assert table == [line for line in out.splitlines() if line in table] and len(table) > 8  # as `train` shows it
  for aspect in ("ends an answer with", "the teacher's greedy", "the student's greedy"):
    assert any(line.lstrip("| ").startswith(aspect) for line in table)
