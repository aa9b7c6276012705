"""What is said of a pair whose ids agree: against tokenizers made to differ in one thing each."""

import json
import shutil

import pytest

from opd_jax.data import check_pair, load_tokenizer
from opd_jax.data.audit import audit_answers, audit_tokenizers


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
    assert "data.teacher_template" in finding.note


def test_texts_that_are_other_tokens_are_shown_with_both_spellings(small, small_folder, tmp_path):
  """The same ids, but the teacher knows only the first merges: it spells what it reads in more pieces."""

  def drop_merges(content):
    content["model"]["merges"] = content["model"]["merges"][:5]

  teacher = copy(small_folder, tmp_path / "teacher", drop_merges)
  check_pair(small, teacher)
  finding = of(audit_tokenizers(small, teacher, (2,), (2,), ["How many eggs are left?"]))["spelling"]
  assert finding.student != finding.teacher and "objective.mask_first" in finding.note
  assert len(finding.teacher) > len(finding.student)  # more pieces for the same text


def told(small, teacher, student, writer="teacher"):
  """Findings on two answers, "How many" and "eggs", the second row longer than its answer."""
  answers = [small.hf("How many")["input_ids"][:2], small.hf("eggs")["input_ids"][:1]]
  assert [len(answer) for answer in answers] == [2, 1]
  names = [repr(small.hf.decode([token])) for answer in answers for token in answer]
  return audit_answers(small, writer, answers, student, teacher), names


def test_answers_are_told_by_their_means_and_by_what_the_two_differ_most_in(small):
  (means, apart), (a, b, c) = told(small, [[-0.1, -0.2], [-0.3, -99]], [[-0.2, -5.2], [-1.8, -99]])
  assert (means.aspect, means.student, means.teacher) == (
    "the teacher's greedy answers",
    "-2.40 nats a token",
    "-0.20 nats a token",
  )
  assert means.note == "" == apart.note
  assert apart.student == f"{b} -5.20; {c} -1.80; {a} -0.20" and apart.teacher == f"{b} -0.20; {c} -0.30; {a} -0.10"


def test_an_id_is_shown_once_at_its_worst_place(small):
  token = small.hf("eggs")["input_ids"][0]
  _, apart = audit_answers(small, "student", [[token, token]], [[-0.5, -0.1]], [[-1.0, -3.0]])
  assert apart.student.count(";") == 0 and apart.student.endswith(" -0.10") and apart.teacher.endswith(" -3.00")


@pytest.mark.parametrize(
  "writer, teacher, warned", [("teacher", -1.2, True), ("teacher", -0.9, False), ("student", -9, False)]
)
def test_a_teacher_that_finds_its_own_answers_unlikely_is_told(small, writer, teacher, warned):
  (means, _), _ = told(small, [[teacher, teacher], [teacher]], [[-1, -1], [-1]], writer)
  assert ("data.chat" in means.note and "weights" in means.note) == warned
