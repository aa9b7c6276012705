"""Where a student and a teacher with the same ids differ all the same: what a run says of its pair before it begins.

The ids mean the same texts (`check_pair`), so every divergence is defined; but a teacher that ends its answers with
another token, that was trained with another template, or that spells a text in other tokens, tells the student that
what it does right is wrong (arXiv 2603.25562, section 2.3: `<think>` in one token against `<th` `ink` `>`).
And a teacher that does not know such prompts, or whose weights are not what they should be, finds even its own greedy
answers unlikely.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from opd_jax.data.tokenizer import Tokenizer

_PROBE = [{"role": "user", "content": "What is 2 + 3?"}]
_MARKERS = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "####")
_SHOWN = 3  # examples a line
_SOUND = -1.0  # nats a token that a teacher should give its own greedy answers at the least: mostly -0.1 to -0.6


@dataclasses.dataclass(frozen=True)
class Finding:
  """One aspect of a pair. `note` says what to do; empty where the two agree."""

  aspect: str
  student: str
  teacher: str
  note: str = ""


def audit_tokenizers(
  student: Tokenizer,
  teacher: Tokenizer,
  student_stop: Sequence[int],
  teacher_stop: Sequence[int],
  texts: Sequence[str] = (),
  own_template: bool = False,
) -> list[Finding]:
  """Compares what the ids alone do not tell.

  Args:
    student, teacher: a pair that `check_pair` let pass.
    student_stop, teacher_stop: ids that end an answer of each (`stop_ids`).
    texts: what the two should spell alike, some prompts for instance; a few usual markers are looked at in any case.
    own_template: what the teacher sees goes through its own chat template.
  """
  templates = _templates(student, teacher, own_template)
  findings = [_ends(student, student_stop, teacher_stop), templates, _padding(student, teacher)]
  return [*findings, _spelling(student, teacher, [*_MARKERS, *texts])]


def audit_answers(
  tokenizer: Tokenizer,
  writer: str,
  answers: Sequence[Sequence[int]],
  student: Sequence[Sequence[float]],
  teacher: Sequence[Sequence[float]],
) -> list[Finding]:
  """What both models make of the greedy answers of one of them.

  Args:
    tokenizer: the student's.
    writer: "student" or "teacher", whose answers they are.
    answers: token ids; at least one token in all.
    student, teacher: log-prob of each token in nats; a row may be longer than its answer.

  Returns:
    The means over all tokens, and the three ids whose log-probs differ most, each at its worst place.
  """
  ours, theirs = (np.concatenate([row[: len(ids)] for ids, row in zip(answers, side)]) for side in (student, teacher))
  note = ""
  if writer == "teacher" and theirs.mean() < _SOUND:
    note = (
      "a sound teacher finds its own greedy answers likely, -0.1 to -0.6 nats a token: this one may not know such "
      "prompts (see data.chat and data.teacher_template), or its weights are not what they should be"
    )
  means = (f"{side.mean():z.2f} nats a token" for side in (ours, theirs))
  tokens, worst = np.concatenate([np.asarray(ids) for ids in answers]), {}
  for i in np.argsort(-np.abs(theirs - ours), kind="stable"):
    worst.setdefault(int(tokens[i]), i)
  shown = list(worst.items())[:_SHOWN]
  names = _named(tokenizer, [token for token, _ in shown])
  apart = (
    "; ".join(f"{name} {side[i]:z.2f}" for name, (_, i) in zip(names, shown, strict=True)) for side in (ours, theirs)
  )
  return [Finding(f"the {writer}'s greedy answers", *means, note), Finding("differing most there", *apart)]


def _ends(tokenizer: Tokenizer, student: Sequence[int], teacher: Sequence[int]) -> Finding:
  ours, theirs = (", ".join(_named(tokenizer, ids)) or "none" for ids in (student, teacher))
  lost = set(student) - set(teacher)
  note = ""
  if lost:
    names = ", ".join(_named(tokenizer, sorted(lost)))
    note = (
      f"the teacher does not end with {names} and may punish a student that does: see student_eos, or leave it out of "
      "the loss with objective.mask_first"
    )
  return Finding("ends an answer with", ours, theirs, note)


def _templates(student: Tokenizer, teacher: Tokenizer, own_template: bool) -> Finding:
  rendered = [each.encode_prompt(_PROBE) if each.hf.chat_template else None for each in (student, teacher)]
  names = ["a template" if ids else "no template" for ids in rendered]
  note = ""
  if rendered[0] != rendered[1]:
    if not own_template:
      note = "the teacher reads the student's prompts, which are not those that it knows: see data.teacher_template"
    names = ["its own", "another"] if all(rendered) else names
  return Finding("chat template", *names, note)


def _padding(student: Tokenizer, teacher: Tokenizer) -> Finding:
  names = [each.hf.pad_token or "none" for each in (student, teacher)]
  return Finding("padding", *names)  # known by masks here, so that a difference needs no action


def _spelling(student: Tokenizer, teacher: Tokenizer, texts: Sequence[str]) -> Finding:
  differing = []
  for text in texts:
    pieces = [each.hf(text, add_special_tokens=False, verbose=False)["input_ids"] for each in (student, teacher)]
    if pieces[0] != pieces[1]:
      differing.append((text, *pieces))
  if not differing:
    return Finding("spelling", f"{len(texts)} texts", "the same")
  shown = [_first_difference(student, *ids) for _, *ids in differing[:_SHOWN]]
  ours, theirs = ("; ".join(side) for side in zip(*shown, strict=True))
  return Finding(
    "spelling",
    ours,
    theirs,
    f"{len(differing)} of {len(texts)} texts are other tokens for the teacher: leave what stands out of the loss with "
    "objective.mask_first",
  )


def _first_difference(tokenizer: Tokenizer, ours: list[int], theirs: list[int]) -> tuple[str, str]:
  """The tokens of both from where they part until they meet again."""
  start = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
  end = next(
    (i for i, pair in enumerate(zip(ours[::-1], theirs[::-1])) if pair[0] != pair[1]), min(len(ours), len(theirs))
  )
  end = min(end, len(ours) - start, len(theirs) - start)
  return tuple(" ".join(_named(tokenizer, ids[start : len(ids) - end])) or "nothing" for ids in (ours, theirs))


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
  return [repr(tokenizer.hf.decode([token], skip_special_tokens=False)) for token in ids]
