"""Twenty steps on real prompts: GSM8K's JSONL and DAPO's chat-message parquet, a byte-level BPE of 8,192 entries."""

import json

import jax
import numpy as np
import pytest

from opd_jax.config import from_config_dict
from opd_jax.training import open_run, train
from tests.conftest import train_tokenizer, write_model


@pytest.fixture(scope="module")
def pair(shared_data, tmp_path_factory):
  """A Qwen3-architecture pair; the teacher wider, its vocabulary padded."""
  folder = tmp_path_factory.mktemp("real")
  with open(shared_data / "gsm8k" / "train.jsonl") as file:
    tokenizer = train_tokenizer([json.loads(line)["question"] for line in file], 8192)
  assert len(tokenizer) == 8192
  for name, padding, width, seed in (("student", 0, 32, 0), ("teacher", 64, 64, 1)):
    write_model(folder / name, 8192 + padding, width, seed, head_dim=16)
    tokenizer.save_pretrained(folder / name)
  return folder


@pytest.mark.parametrize(
  "file, prompt, answer",
  [
    ("gsm8k/train.jsonl", "question", "answer"),
    ("dapo-math-17k/train.parquet", "prompt", "reward_model.ground_truth"),
  ],
)
def test_twenty_steps(pair, shared_data, tmp_path, file, prompt, answer):
  config = from_config_dict(
    {
      "steps": 20,
      "student": {"path": str(pair / "student")},
      "teacher": {"path": str(pair / "teacher")},
      "data": {"path": str(shared_data / file), "prompt_field": prompt, "answer_field": answer, "limit": 400},
      "rollout": {"prompts_per_step": 4, "samples_per_prompt": 2, "max_prompt": 256},
      "horizon": {"kind": "progressive", "max": 128, "start": 48, "increment": 16, "every": 4, "buckets": (64, 128)},
      "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
      "log": {"tensorboard": False, "fail_on_unplanned_compile": True},
    }
  )
  run = open_run(config, tmp_path, jax.devices()[:1])
  train(run)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert len(rows) == 20 and {row["bucket"] for row in rows} == {64, 128}
  losses = np.array([row["loss"] for row in rows])
  assert np.isfinite([[row["loss"], row["grad_norm"], row["student_entropy"]] for row in rows]).all()
  assert losses[-3:].mean() < 0.8 * losses[:3].mean()
  # The decode layout, two programs for each of two buckets, and one canary for each architecture.
  assert [row["compiles"] for row in rows][-1] == 7
  # Every program has run by step 12 (the bucket of 128 starts at step 9): from there on only
  # the allocator may still settle; one leaked [B, S, V] array a step would add 30 MB each time.
  assert rows[-1]["host_memory_peak"] < 1.05 * rows[11]["host_memory_peak"]
