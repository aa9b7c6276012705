"""Tokenizer folders as a user would have them: byte-level BPE, trained here, saved in Hugging Face format."""

import json
import os
from pathlib import Path

import pytest

from opd_jax.data import load_tokenizer

CHATML = (
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _write_tokenizer(folder, texts, vocab_size, chat_template=CHATML, bos=False):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
  from transformers import PreTrainedTokenizerFast

  bpe = Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
  )
  bpe.train_from_iterator(texts, trainer)
  if bos:
    bpe.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
  hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
  hf.chat_template = chat_template
  hf.save_pretrained(folder)
  return folder


@pytest.fixture
def write_tokenizer():
  """(folder, texts, vocab_size, chat_template=..., bos=False) -> folder, with a tokenizer trained on the texts."""
  return _write_tokenizer


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
  texts = ["How many eggs are left? What is the sum of two and three?"] * 4
  return _write_tokenizer(tmp_path_factory.mktemp("small"), texts, 300)


@pytest.fixture(scope="session")
def small(small_folder):
  return load_tokenizer(small_folder)


@pytest.fixture(scope="session")
def shared():
  """The folder of real data that is not part of the project."""
  folder = Path(os.environ.get("OPD_SHARED", Path(__file__).parents[2] / "../shared")) / "data"
  if not folder.is_dir():
    pytest.skip("no shared data: set OPD_SHARED")
  return folder


@pytest.fixture(scope="session")
def trained_on_gsm8k(shared, tmp_path_factory):
  questions = [json.loads(line)["question"] for line in (shared / "gsm8k/train.jsonl").open(encoding="utf-8")]
  return load_tokenizer(_write_tokenizer(tmp_path_factory.mktemp("gsm8k"), questions, 8192))
