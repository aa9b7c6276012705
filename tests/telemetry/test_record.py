"""The totals of a run, against numbers counted by hand."""

import pytest

from opd_jax.errors import InputError
from opd_jax.telemetry.record import RunRecord, Score, read_run, settings_line


def record(metrics=(), evaluations=()) -> RunRecord:
  return RunRecord("run", {}, "", tuple(metrics), tuple(evaluations), ())


def test_tokens_and_seconds_up_to_a_step_leave_evaluation_out(make_run):
  run = read_run(make_run(steps=12))
  assert [run.generated_tokens(step) for step in (0, 1, 5, 12, 99, None)] == [0, 100, 500, 1200, 1200, 1200]
  assert [run.training_seconds(step) for step in (0, 4, None)] == [0, 4.0, 12.0]
  assert run.seconds_split() == {"rollout": 6.0, "update": 3.0, "eval": 1.5, "other": 3.0}


def test_compiles_are_found_where_they_happened_also_after_a_resume():
  counts = [2, 2, 4, 4, 2, 2, 3]  # the fall from 4 to 2 is another process, which compiled 2
  run = record({"step": step, "compiles": count} for step, count in enumerate(counts, start=1))
  assert run.compiles() == {1: 2, 3: 2, 5: 2, 7: 1}


def test_a_column_leaves_nulls_out(make_run):
  steps, losses = read_run(make_run(steps=4)).column("loss")
  assert (steps, losses) == ([1, 3, 4], [1.0, 1 / 3, 0.25])


def test_results_group_by_set_and_sampling_and_find_before_after_and_teacher():
  def row(step, model, accuracy, k=1, temperature=0.0):
    return {"step": step, "set": "s", "model": model, "k": k, "temperature": temperature, "accuracy": accuracy}

  run = record(
    evaluations=[
      row(0, "student", 0.2),
      row(0, "teacher", 1.0),
      row(0, "student", 0.1, k=4, temperature=0.7),
      row(5, "student", 0.5),
      row(9, "student", 0.3),
      row(9, "student", 0.6),  # evaluated again: the later row stands
      row(9, "student", None, k=4, temperature=0.7),
    ]
  )
  greedy, sampled = run.results()
  assert (greedy.label, sampled.label) == ("s greedy", "s T=0.7 avg@4")
  assert (greedy.before, greedy.after, greedy.teacher) == (
    Score(0, 0.2, None),
    Score(9, 0.6, None),
    Score(0, 1.0, None),
  )
  assert greedy.gap_closed == pytest.approx(0.5)
  assert (sampled.before.accuracy, sampled.after, sampled.teacher, sampled.gap_closed) == (0.1, None, None, None)


def test_settings_in_one_line_also_of_a_config_with_gaps(make_run):
  assert settings_line(read_run(make_run()).config) == "progressive horizon 16 + 16 every 4 to 64, 12 steps, seed 0"
  assert settings_line({"horizon": {"kind": "truncated", "rho": 0.1}}) == "truncated horizon rho 0.1 of ?"
  assert settings_line({}) == ""


def test_folders_without_a_run_are_one_line(tmp_path):
  with pytest.raises(InputError, match="no folder"):
    read_run(tmp_path / "none")
  (tmp_path / "metrics.jsonl").write_text("")
  (tmp_path / "eval.jsonl").write_text('{"step": 0, "accur')
  with pytest.raises(InputError, match=r"no metrics\.jsonl or eval.jsonl with a row"):
    read_run(tmp_path)
