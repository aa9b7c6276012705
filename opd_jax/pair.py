"""A student and what scores it as far as they share: token ids, ids that end an answer, and how many ids there are.

Nothing here reads a weight, so a pair that cannot work together is refused in seconds.
"""

import dataclasses

from opd_jax.data import Finding, Tokenizer, audit_tokenizers, check_pair, load_tokenizer, stop_ids
from opd_jax.errors import InputError
from opd_jax.models import Architecture, read_architecture


@dataclasses.dataclass(frozen=True)
class Pair:
  """What student and teacher agree on, and the reference with them where there is one.

  Attributes:
    tokenizer: the student's; the others' give every id the same text.
    eos_ids: ids that end the student's answer.
    teacher_eos_ids: ids that end the teacher's.
    vocab_size: ids that have a text; heads may be padded beyond.
    student, teacher, reference: architectures.
    findings: what the tokenizers of student and teacher differ in all the same.
    teacher_tokenizer: the teacher's own, whose chat template may be another.
  """

  tokenizer: Tokenizer
  eos_ids: tuple[int, ...]
  teacher_eos_ids: tuple[int, ...]
  vocab_size: int
  student: Architecture
  teacher: Architecture
  findings: tuple[Finding, ...]
  teacher_tokenizer: Tokenizer
  reference: Architecture | None = None


def open_pair(student_path: str, teacher_path: str, reference_path: str = "", own_template: bool = False) -> Pair:
  """Reads config.json and tokenizer of the folders (or hub ids). Raises InputError where they do not go together.

  `own_template`: what the teacher sees goes through its own chat template.
  """
  others = {"teacher": teacher_path} | ({"reference": reference_path} if reference_path else {})
  paths = {"student": student_path} | others
  architectures = {role: read_architecture(path) for role, path in paths.items()}
  tokenizers = {role: load_tokenizer(path) for role, path in paths.items()}
  tokenizer = tokenizers["student"]
  for role in others:
    check_pair(tokenizer, tokenizers[role], role)
  for role, path in paths.items():
    if tokenizer.size > architectures[role].vocab_size:
      raise InputError(
        f"{path}: its tokenizer has {tokenizer.size} ids, but config.json gives the model only "
        f"{architectures[role].vocab_size}: the tokenizer belongs to another model"
      )
  stops = [stop_ids(paths[role], tokenizers[role]) for role in ("student", "teacher")]
  teacher = tokenizers["teacher"]
  findings = audit_tokenizers(tokenizer, teacher, *stops, own_template=own_template)
  return Pair(tokenizer, *stops, tokenizer.size, **architectures, findings=tuple(findings), teacher_tokenizer=teacher)
