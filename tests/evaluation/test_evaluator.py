"""Marks of a model against marks given by hand; what the samples say of each token against dense sums."""

import json

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.evaluation import grade
from opd_jax.rollout import generate
from opd_jax.training import open_run


@pytest.fixture(scope="module")
def run(tiny_pair, tiny_config, tmp_path_factory):
  """Eleven questions in batches of four; the references are what the student says itself to every second one. A second
  set has the first five of them."""
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
  (folder / "few.jsonl").write_text("")
  flags += [f"--config.eval.sets=('few = {folder}/few.jsonl; prompt_field=asked.text',)"]
  rows = [json.loads(line) for line in path.read_text().splitlines()]

  def write():
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = [{"asked": {"text": row["prompt"]}, "answer": row["answer"]} for row in rows[:5]]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))

  write()
  opened = open_run(load_config(tiny_config, flags), folder / "w", jax.devices()[:1])
  student = models.load(tiny_pair / "student", dtype="float32", mesh=opened.mesh)
  for i, ids in enumerate(greedy_answers(opened, student)):
    rows[i]["answer"] = opened.pair.tokenizer.decode(ids) if i % 2 == 0 else "something else"
  write()
  return open_run(load_config(tiny_config, flags), folder / "w", jax.devices()[:1]), student


def greedy_answers(run, model):
  """Token ids."""
  prompts, pair = run.evaluator.sets[0].prompts.token_ids, run.pair
  out = jax.device_get(generate(model, prompts, horizon=16, bucket=16, temperature=0.0, seed=0, eos_ids=pair.eos_ids))
  return [row[mask].tolist() for row, mask in zip(out.completions_bs, out.completion_mask_bs)]


def test_greedy_and_sampled_marks(run):
  opened, student = run
  greedy, sampled, *_ = opened.evaluator(student, "student", 7)
  assert greedy.row["accuracy"] == 6 / 11 and greedy.row["k"] == 1 and greedy.row["temperature"] == 0
  np.testing.assert_allclose(greedy.row["stderr"], np.std([1, 0] * 5 + [1], ddof=1) / np.sqrt(11))
  assert greedy.row["pass_at"] == {"1": 6 / 11} and greedy.row["maj"] == 6 / 11
  assert (greedy.row["step"], greedy.row["set"], greedy.row["model"], greedy.row["prompts"]) == (
    7,
    "set",
    "student",
    11,
  )
  assert sampled.row["k"] == 3 and sampled.row["temperature"] == 0.8
  assert 0 <= sampled.row["accuracy"] <= 1 and 1 <= sampled.row["length"] <= 16
  assert sampled.row["pass_at"].keys() == {"1", "2", "3"}
  texts = [opened.pair.tokenizer.decode(ids) for ids in greedy_answers(opened, student)]
  for i, sample in enumerate(greedy.samples):
    assert sample["completion"] == texts[i] and sample["prompt"] == opened.evaluator.sets[0].prompts.texts[i]
    assert sample["correct"] is grade("exact", sample["completion"], sample["answer"]) is (i % 2 == 0)
    assert "kl" not in sample
  assert len(greedy.samples) == 2


def test_a_second_set_is_answered_by_the_same_programs(run):
  opened, student = run
  whole, _, few, sampled = opened.evaluator(student, "student", 0)
  assert [(e.row["set"], e.label) for e in (few, sampled)] == [("few", "few greedy"), ("few", "few T=0.8 avg@3")]
  assert (few.row["prompts"], few.row["accuracy"]) == (5, 3 / 5)
  same = ("prompt", "completion", "answer", "correct")
  assert [[s[key] for key in same] for s in few.samples] == [[s[key] for key in same] for s in whole.samples]
  compiled = [(compile.program, compile.bucket) for compile in opened.table.compiles]
  assert sorted(set(compiled)) == sorted(compiled)
  assert {name for name, _ in compiled} - {"token_kl"} == {"decode_layout", "evaluate_greedy", "evaluate_sampled"}


def test_samples_hold_the_kl_of_each_token(run, tiny_pair):
  """Against sums over the vocabulary in float64, from logits of the whole text."""
  opened, student = run
  teacher = models.load(tiny_pair / "teacher", dtype="float32", mesh=opened.mesh)
  greedy, sampled, *_ = opened.evaluator(student, "student", 0, teacher)
  prompts, answers = opened.evaluator.sets[0].prompts.token_ids, greedy_answers(opened, student)

  def log_probs(model, ids):
    logits = np.asarray(models.logits(model, [ids]), np.float64)[0, :, : opened.pair.vocab_size]
    return log_softmax(logits, axis=-1)

  for sample, prompt, answer in zip(greedy.samples, prompts, answers, strict=False):
    ours, theirs = (log_probs(model, [*prompt, *answer])[len(prompt) - 1 : -1] for model in (student, teacher))
    expected = (np.exp(ours) * (ours - theirs)).sum(-1)
    np.testing.assert_allclose(sample["kl"], expected, atol=1e-3)
    assert max(sample["kl"]) > 0.1 and len(sample["tokens"]) == len(answer)
  assert all(len(sample["kl"]) == len(sample["tokens"]) > 0 for sample in sampled.samples)


def test_evaluating_twice_gives_the_same_answers(run):
  opened, student = run
  first, second = (
    [({k: v for k, v in e.row.items() if k != "seconds"}, e.samples) for e in opened.evaluator(student, "student", 1)]
    for _ in range(2)
  )
  assert first == second
