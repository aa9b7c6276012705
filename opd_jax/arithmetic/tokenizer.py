"""One token a character: the task's vocabulary, for the pre-training in NumPy and for everybody else as a Hugging Face
tokenizer. There is no chat template: these models never saw a conversation.
"""

import os
from pathlib import Path

import numpy as np

from opd_jax.arithmetic.task import BASE, LETTERS

END, UNKNOWN = "<eos>", "<unk>"
VOCABULARY = (*map(str, range(BASE)), *LETTERS, "=", ":", END, UNKNOWN)
END_ID = VOCABULARY.index(END)


def encode(texts: list[str]) -> np.ndarray:
  """int32 [B, T] of texts of one length, every character a token."""
  code_points_bt = np.array([[*map(ord, text)] for text in texts])
  return _ID_OF_CODE_POINT[code_points_bt]


def save_tokenizer(folder: str | os.PathLike) -> None:
  """Writes tokenizer files into `folder` that transformers' AutoTokenizer loads."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # advice to install torch, which nobody needs here
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
  tokenizer.decoder = decoders.Fuse()
  PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
  ).save_pretrained(Path(folder))


def _ids_by_code_point() -> np.ndarray:
  table = np.full(128, VOCABULARY.index(UNKNOWN), np.int32)
  for i, token in enumerate(VOCABULARY):
    if len(token) == 1:
      table[ord(token)] = i
  return table


_ID_OF_CODE_POINT = _ids_by_code_point()
