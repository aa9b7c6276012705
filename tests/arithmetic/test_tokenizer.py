"""The Hugging Face tokenizer and the NumPy one agree, and nothing is lost on the way back to text."""

import pytest

from opd_jax.arithmetic import task, tokenizer
from opd_jax.data import load_tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer.save_tokenizer(folder)
  return load_tokenizer(folder)


def test_ids_and_text_round_trip(loaded):
  for row in task.problems(20, (0,)):
    for text in (row["prompt"], row["answer"]):
      ids = loaded.encode_prompt(text)
      assert ids == tokenizer.encode([text])[0].tolist()
      assert loaded.decode(ids) == text
    assert len(loaded.encode_prompt(row["prompt"])) == 49
    assert len(loaded.encode_prompt(row["answer"])) == 96


def test_vocabulary(loaded):
  assert loaded.size == len(tokenizer.VOCABULARY) == len(set(tokenizer.VOCABULARY))
  assert loaded.hf.eos_token_id == tokenizer.END_ID
  assert loaded.hf.chat_template is None
  assert loaded.decode([tokenizer.END_ID]) == ""
  unknown = tokenizer.VOCABULARY.index(tokenizer.UNKNOWN)
  assert loaded.encode_prompt("a9\n") == [tokenizer.VOCABULARY.index("a"), unknown, unknown]
