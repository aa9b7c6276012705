"""The best checkpoint so far stays beside the newest, and is found again; resuming is from the newest all the same."""

import jax
import numpy as np
import pytest

from opd_jax.command_line import load_config
from opd_jax.errors import InputError
from opd_jax.evaluation.evaluator import Evaluation, Evaluator
from opd_jax.training import open_run, restore_student, train
from opd_jax.training.checkpoint import Checkpointer

MARKS = {2: 0.5, 4: 0.75, 6: 0.625, 8: 0.75, 10: 0.25}  # of the student after so many steps


@pytest.fixture
def marked(tiny_pair, tiny_config, monkeypatch):
  """open_(workdir, *flags) -> a run that is evaluated every other step and gets these marks."""

  def evaluate(self, model, name, step, teacher=None):
    rows = {"step": step, "set": "prompts", "model": name, "k": 1, "temperature": 0.0}
    return [Evaluation(rows | {"accuracy": MARKS.get(step, 0.0), "stderr": None}, [])]

  monkeypatch.setattr(Evaluator, "__call__", evaluate)
  flags = [
    f"--config.eval.path={tiny_pair}/prompts.jsonl",
    "--config.eval.batch=8",
    "--config.eval.every=2",
    "--config.eval.keep_best=prompts greedy",
    "--config.checkpoint.every=100",
    "--config.checkpoint.keep=1",
    "--config.horizon.kind=truncated",  # one bucket: the programs are not what is looked at
  ]

  def open_(workdir, *more):
    return open_run(load_config(tiny_config, [*flags, *more]), workdir, jax.devices()[:1])

  return open_


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def parameters(student):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(student.params)]


def test_the_best_stays_beside_the_newest_and_resuming_is_from_the_newest(marked, tmp_path):
  train(marked(tmp_path / "w", "--config.steps=6"))
  assert steps_of(tmp_path / "w") == [4, 6]
  best, step = restore_student(marked(tmp_path / "w", "--config.steps=6"), "best")
  assert step == 4
  train(marked(tmp_path / "short", "--config.steps=4"))
  other, _ = restore_student(marked(tmp_path / "short", "--config.steps=4"))
  for ours, theirs in zip(parameters(best), parameters(other), strict=True):
    np.testing.assert_array_equal(ours, theirs)

  resumed = marked(tmp_path / "w", "--config.steps=10")
  train(resumed)
  # Step 8 is as good as step 4 and no better, so nothing was saved for its sake.
  assert steps_of(tmp_path / "w") == [4, 10]
  assert [restore_student(resumed, which)[1] for which in ("newest", "best", "4", "10")] == [10, 4, 4, 10]
  assert len((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()) == 10
  with pytest.raises(InputError, match=r"no checkpoint '8'.*\[4, 10\]"):
    restore_student(resumed, "8")


def test_best_is_asked_of_a_run_that_kept_none(marked, tmp_path):
  train(marked(tmp_path, "--config.steps=2", "--config.eval.keep_best="))
  with pytest.raises(InputError, match=r"no best checkpoint: config\.eval\.keep_best is empty.*\[2\]"):
    restore_student(marked(tmp_path, "--config.steps=2", "--config.eval.keep_best="), "best")
  with pytest.raises(InputError, match=r"no best checkpoint: none of them has the mark 'prompts greedy'"):
    restore_student(marked(tmp_path, "--config.steps=2"), "best")
  checkpoints = Checkpointer(tmp_path, 1, "prompts greedy")
  assert checkpoints.would_be_best({"prompts greedy": 0.0}) and not checkpoints.would_be_best({"another": 1.0})
  checkpoints.close()
