"""What is said of a pair whose ids agree: against tokenizers made to differ in one thing each."""

import json
import shutil

import pytest

from opd_jax.data import check_pair, load_tokenizer
from opd_jax.data.audit import audit_tokenizers


def of(findings):
  return {finding.aspect: finding for finding in findings}


def copy(folder, target, change):
  shutil.copytree(folder, target)
  path = target / "tokenizer.json"
  content = json.loads(path.read_text(encoding="utf-8"))
  change(content)
  path.write_text(json.dumps(content), encoding="utf-8")
  return load_tokenizer(target)


def test_a_tokenizer_agrees_with_itself(small):
  findings = audit_tokenizers(small, small, (2,), (2,), ["How many eggs?"])
  assert [finding.note for finding in findings] == ["", "", "", ""]
  assert of(findings)["ends an answer with"].student == "'<|im_end|>'"


@pytest.mark.parametrize("student, teacher, told", [((0, 2), (0,), True), ((0,), (0, 2), False)])
def test_an_end_that_the_teacher_does_not_know_is_named(small, student, teacher, told):
  finding = of(audit_tokenizers(small, small, student, teacher, []))["ends an answer with"]
  assert ("'<|im_end|>'" in finding.note and "objective.mask_first" in finding.note) == told


def test_another_template_is_told_and_so_is_none(small, small_folder, tmp_path):
  for name, template in (("other", "{{ messages[0].content }}"), ("none", None)):
    hf = load_tokenizer(small_folder).hf
    hf.chat_template = template
    hf.save_pretrained(tmp_path / name)
    finding = of(audit_tokenizers(small, load_tokenizer(tmp_path / name), (2,), (2,), []))["chat template"]
    assert "data.teacher_prompt_field" in finding.note


def test_texts_that_are_other_tokens_are_shown_with_both_spellings(small, small_folder, tmp_path):
  """The same ids, but the teacher knows only the first merges: it spells what it reads in more pieces."""

  def drop_merges(content):
    content["model"]["merges"] = content["model"]["merges"][:5]

  teacher = copy(small_folder, tmp_path / "teacher", drop_merges)
  check_pair(small, teacher)
  finding = of(audit_tokenizers(small, teacher, (2,), (2,), ["How many eggs are left?"]))["spelling"]
  assert finding.student != finding.teacher and "objective.mask_first" in finding.note
  assert len(finding.teacher) > len(finding.student)  # more pieces for the same text
