"""Which sets a config names, and what their marks are called."""

import pytest

from opd_jax.config import Eval
from opd_jax.errors import InputError
from opd_jax.evaluation.questions import Source, best_label, list_labels, list_sources

SETS = (
  "aime25 = data/aime25/test.parquet",
  "gsm8k=g/test.jsonl;grader=gsm8k; prompt_field = question;answer_field=a.b",
)


def test_sets_take_from_eval_what_they_do_not_say():
  config = Eval(path="data/aime24/test.parquet", sets=SETS, grader="math", prompt_field="p", answer_field="r.t")
  assert list_sources(config) == (
    Source("eval.path", "test", "data/aime24/test.parquet", "p", "r.t", "math"),
    Source("eval.sets", "aime25", "data/aime25/test.parquet", "p", "r.t", "math"),
    Source("eval.sets", "gsm8k", "g/test.jsonl", "question", "a.b", "gsm8k"),
  )


@pytest.mark.parametrize(
  ("path", "name"),
  [("questions.jsonl", "questions"), ("a/b/gsm8k:test", "gsm8k"), ("arithmetic:uniform@0/eval.jsonl", "eval")],
)
def test_a_set_without_a_name_is_called_by_its_file(path, name):
  assert [source.name for source in list_sources(Eval(path=path))] == [name]


def test_marks_are_called_by_set_and_setting():
  config = Eval(sets=SETS, samples=4, temperature=0.7)
  labels = ["aime25 greedy", "aime25 T=0.7 avg@4", "gsm8k greedy", "gsm8k T=0.7 avg@4"]
  assert list_labels(config) == labels
  for wanted, label in (("", ""), ("accuracy", labels[0]), (labels[3], labels[3])):
    assert best_label(Eval(sets=SETS, samples=4, temperature=0.7, keep_best=wanted)) == label


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"sets": ("aime25",)}, "NAME = PATH"),
    ({"sets": ("a = x.jsonl; greder=math",)}, "'greder'.*did you mean `grader`"),
    ({"sets": ("a = x.jsonl; grader=maths",)}, "`maths`.*`math`"),
    ({"path": "d/a.jsonl", "sets": ("a = x.jsonl",)}, "2 sets called 'a'"),
    ({"sets": SETS, "keep_best": "gsm8k gredy"}, "'gsm8k gredy'.*did you mean `gsm8k greedy`.*known: accuracy, aime25"),
    ({"keep_best": "accuracy"}, "no evaluation set"),
  ],
)
def test_what_names_no_set_or_mark_is_one_line(fields, words):
  with pytest.raises(InputError, match=words):
    best_label(Eval(**fields))
