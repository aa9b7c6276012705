"""A student and its teacher as far as they share: token ids, ids that end an answer, and how many ids there are.

Nothing here reads a weight, so a pair that cannot work together is refused in seconds.
"""

import dataclasses

from opd_jax.data import Tokenizer, check_pair, load_tokenizer, stop_ids
from opd_jax.errors import InputError
from opd_jax.models import Architecture, read_architecture


@dataclasses.dataclass(frozen=True)
class Pair:
  """What both models agree on.

  Attributes:
    tokenizer: the student's; the teacher's gives every id the same text.
    eos_ids: ids that end the student's answer.
    vocab_size: ids that have a text; both heads may be padded beyond.
    student, teacher: architectures.
  """

  tokenizer: Tokenizer
  eos_ids: tuple[int, ...]
  vocab_size: int
  student: Architecture
  teacher: Architecture


def open_pair(student_path: str, teacher_path: str) -> Pair:
  """Reads config.json and tokenizer of both folders (or hub ids). Raises InputError where they do not go together."""
  student, teacher = read_architecture(student_path), read_architecture(teacher_path)
  tokenizer = load_tokenizer(student_path)
  check_pair(tokenizer, load_tokenizer(teacher_path))
  for path, architecture in ((student_path, student), (teacher_path, teacher)):
    if tokenizer.size > architecture.vocab_size:
      raise InputError(
        f"{path}: its tokenizer has {tokenizer.size} ids, but config.json gives the model only "
        f"{architecture.vocab_size}: the tokenizer belongs to another model"
      )
  return Pair(tokenizer, stop_ids(student_path, tokenizer), tokenizer.size, student, teacher)
