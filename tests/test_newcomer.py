"""A newcomer's way, with the commands and the code of docs/first_run.md and nothing else: from two folders that
transformers wrote and a file of questions to a student that transformers loads and that answers."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMPILED_SOON, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "first_run.md").read_text(), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """What the page says must be there: models/student, models/teacher and questions.jsonl."""
  torch = pytest.importorskip("torch")
  from transformers import Qwen3Config, Qwen3ForCausalLM

  rows = [{"question": f"{i} apples, {i % 7} eaten. How many are left?", "answer": str(i - i % 7)} for i in range(48)]
  (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  tokenizer = train_tokenizer([row["question"] for row in rows], 300)
  for seed, (name, width) in enumerate({"student": 32, "teacher": 64}.items()):
    torch.manual_seed(seed)
    config = Qwen3Config(
      vocab_size=len(tokenizer) + 12,  # padded, as published heads are
      hidden_size=width,
      intermediate_size=2 * width,
      num_hidden_layers=2,
      num_attention_heads=2,
      num_key_value_heads=1,
      head_dim=16,
      max_position_embeddings=512,
      initializer_range=0.2,
      tie_word_embeddings=True,
      bos_token_id=None,
      eos_token_id=tokenizer.eos_token_id,
      pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "models" / name)
    tokenizer.save_pretrained(tmp_path / "models" / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_the_page_leads_to_a_student_that_transformers_loads(folder):
  from transformers import AutoModelForCausalLM

  names = {}
  for language, block in BLOCKS:
    if language == "bash":
      for command in block.splitlines():
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"]
        environment = {**os.environ, "XLA_FLAGS": COMPILED_SOON, "PYTHONPATH": str(ROOT)}
        words[0] = sys.executable
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    elif file := re.match(r"# (\S+\.py)\n", block):
      Path(file[1]).write_text(block)
    else:
      exec(block, names)
  asked, answered = names["question"]["input_ids"].shape[1], names["answer"].shape[1]
  assert asked < answered <= asked + 32
  rows = [json.loads(row) for row in (folder / "runs" / "first" / "eval.jsonl").read_text().splitlines()]
  assert [(row["model"], row["step"], row["prompts"]) for row in rows] == [
    ("teacher", 0, 16),
    ("student", 0, 16),
    ("student", 10, 16),
  ]
  before = AutoModelForCausalLM.from_pretrained(folder / "models" / "student").state_dict()
  after = names["student"].state_dict()
  assert before.keys() == after.keys()
  assert all(tensor.isfinite().all() and not tensor.equal(before[name]) for name, tensor in after.items())
  assert (folder / "runs" / "first" / "report.html").exists()
