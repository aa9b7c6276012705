"""Marks of a model against marks given by hand."""

import json

import jax
import numpy as np
import pytest

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.evaluation import grade
from opd_jax.rollout import generate
from opd_jax.training import open_run


@pytest.fixture(scope="module")
def run(tiny_pair, tiny_config, tmp_path_factory):
  """Eleven questions in batches of four; the references are what the student says itself to every second one."""
  folder = tmp_path_factory.mktemp("questions")
  flags = [
    "--config.eval.batch=4",
    "--config.eval.samples=3",
    "--config.eval.temperature=0.8",
    "--config.log.samples=2",
  ]
  path = folder / "set.jsonl"
  path.write_text((tiny_pair / "prompts.jsonl").read_text())
  flags += [f"--config.eval.path={path}", "--config.eval.prompts=11"]
  opened = open_run(load_config(tiny_config, flags), folder / "w", jax.devices()[:1])
  student = models.load(tiny_pair / "student", dtype="float32", mesh=opened.mesh)
  said = greedy_answers(opened, student)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for i, text in enumerate(said):
    rows[i]["answer"] = text if i % 2 == 0 else "something else"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return open_run(load_config(tiny_config, flags), folder / "w", jax.devices()[:1]), student


def greedy_answers(run, model):
  prompts = run.evaluator.prompts.token_ids
  pair = run.pair
  out = jax.device_get(generate(model, prompts, horizon=16, bucket=16, temperature=0.0, seed=0, eos_ids=pair.eos_ids))
  return [pair.tokenizer.decode(row[mask].tolist()) for row, mask in zip(out.completions_bs, out.completion_mask_bs)]


def test_greedy_and_sampled_marks(run):
  opened, student = run
  greedy, sampled = opened.evaluator(student, "student", 7)
  assert greedy.row["accuracy"] == 6 / 11 and greedy.row["k"] == 1 and greedy.row["temperature"] == 0
  np.testing.assert_allclose(greedy.row["stderr"], np.std([1, 0] * 5 + [1], ddof=1) / np.sqrt(11))
  assert (greedy.row["step"], greedy.row["set"], greedy.row["model"], greedy.row["prompts"]) == (
    7,
    "set",
    "student",
    11,
  )
  assert sampled.row["k"] == 3 and sampled.row["temperature"] == 0.8
  assert 0 <= sampled.row["accuracy"] <= 1 and 1 <= sampled.row["length"] <= 16
  texts = greedy_answers(opened, student)
  for i, sample in enumerate(greedy.samples):
    assert sample["completion"] == texts[i] and sample["prompt"] == opened.evaluator.prompts.texts[i]
    assert sample["correct"] is grade("exact", sample["completion"], sample["answer"]) is (i % 2 == 0)
  assert len(greedy.samples) == 2


def test_evaluating_twice_gives_the_same_answers(run):
  opened, student = run
  first, second = (
    [{k: v for k, v in e.row.items() if k != "seconds"} for e in opened.evaluator(student, "student", 1)]
    for _ in range(2)
  )
  assert first == second
