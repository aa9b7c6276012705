"""Runs whose teacher is the student, sees another prompt or shares the batch with the data set; and three models."""

import json
import shutil

import jax
import numpy as np
import pytest

from opd_jax.command_line import load_config
from opd_jax.errors import InputError
from opd_jax.planning.subject import read_architectures
from opd_jax.training import open_run, restore_student, train
from opd_jax.training.batch import draw_rows
from tests.conftest import saved_arrays, timeless_rows


@pytest.fixture(scope="module")
def config(tiny_pair, tmp_path_factory):
  """A config file on prompts that have a copy, a longer version and an answer; horizon and bucket 8."""
  folder = tmp_path_factory.mktemp("prompts")
  rows = [json.loads(line) for line in (tiny_pair / "prompts.jsonl").read_text().splitlines()]
  for i, row in enumerate(rows):
    row |= {
      "copy": row["prompt"],
      "hinted": f"{row['prompt']} It is {i * 7 % 13 + i}.",
      "long": f"Ada buys {i} apples. " * 2,
    }
  (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  path = folder / "config.py"
  path.write_text(f"""
from opd_jax.config import defaults

def get_config(arg=""):
  c = defaults()
  c.steps = 4
  c.student.path = "{tiny_pair}/student"
  c.teacher.path = "student"
  c.data.path = "{folder}/prompts.jsonl"
  c.rollout.prompts_per_step = 4
  c.rollout.samples_per_prompt = 2
  c.rollout.max_prompt = 32
  c.horizon.max = 8
  c.horizon.buckets = (8,)
  c.optimizer.learning_rate = 1e-3
  c.optimizer.micro_batches = 1
  c.log.tensorboard = False
  c.log.fail_on_unplanned_compile = True
  return c
""")
  return str(path), tiny_pair


def run(config, workdir, *flags, mesh=(1, 1, 1)):
  shape = [f"mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), mesh)]
  prompts = config[0].replace("config.py", "prompts.jsonl")
  loaded = load_config(config[0], [f"--config.{flag}".replace("PROMPTS", prompts) for flag in (*flags, *shape)])
  opened = open_run(loaded, workdir, jax.devices()[: np.prod(mesh)])
  train(opened)
  compiled = [(c.program, c.bucket) for c in opened.table.compiles if c.program != "canary"]
  assert len(compiled) == len(set(compiled))  # what was compiled ahead is what was called
  canaries = len(opened.table.compiles) - len(compiled)
  alike = loaded.teacher.path == "student" and not loaded.data.teacher_prompt_field  # architecture and prompts
  assert canaries == (0 if loaded.teacher.ema else 1 if alike else 2)
  return opened, rows(workdir)


def rows(workdir):
  return timeless_rows(workdir / "metrics.jsonl")


ALL = (
  "teacher.ema=0.1",
  "data.path=",
  "data.mixture=('2 * PROMPTS', 'PROMPTS; limit=20; teacher_prompt_field=copy')",
  "data.teacher_prompt_field=hinted",
  "rollout.max_teacher_prompt=48",
  "data.answer_field=long",
  "objective.dataset_share=0.4",
)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  return run(config, workdir, *ALL), workdir


def test_resuming_changes_no_bit_of_student_teacher_or_metrics(config, whole, tmp_path):
  run(config, tmp_path, *ALL, "steps=2")
  opened, resumed = run(config, tmp_path, *ALL)
  (_, expected), workdir = whole
  assert resumed == expected
  ours, theirs = saved_arrays(tmp_path, 4), saved_arrays(workdir, 4)
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
  assert restore_student(opened)[1] == 4
  student, teacher = ({k: v for k, v in ours.items() if k.startswith(f"{role}/")} for role in ("student", "teacher"))
  assert len(student) == len(teacher) > 0
  assert any((a != b).any() for a, b in zip(student.values(), teacher.values()))
  assert [row["dataset_rows"] for row in resumed] == [draw_rows(0.4, 0, step, 8).sum() for step in range(4)]


def test_a_mesh_takes_the_steps_of_one_device(config, whole, tmp_path):
  flags = [flag for flag in ALL if "steps" not in flag]
  _, ours = run(config, tmp_path, *flags, "steps=2", mesh=(2, 2, 2))
  for got, expected in zip(ours, whole[0][1]):
    assert (got["tokens"], got["dataset_rows"]) == (expected["tokens"], expected["dataset_rows"])
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)


def test_a_copy_of_the_student_teaches_nothing_until_it_sees_more(config, tmp_path):
  """Each sample's own prompt once more, in wider columns: any other row's, or a shift, would give a loss."""
  flags = ["steps=1", "rollout.max_teacher_prompt=48"]
  marks = [f"eval.path={config[1]}/prompts.jsonl", "eval.prompts=4", "eval.batch=4"]
  _, (same,) = run(config, tmp_path / "copy", *flags, *marks, "data.teacher_prompt_field=copy")
  _, (other,) = run(config, tmp_path / "hinted", *flags, "data.teacher_prompt_field=hinted")
  assert abs(same["loss"]) < 1e-6 < 1e-3 < other["loss"]
  marked = [json.loads(line) for line in (tmp_path / "copy" / "eval.jsonl").read_text().splitlines()]
  assert [(row["model"], row["step"]) for row in marked] == [("student", 0), ("student", 1)]  # one model, marked once


def test_the_answers_of_the_steps_prompts_are_what_trains(config, tmp_path):
  flags = ["data.answer_field=long", "objective.dataset_share=1.0", "objective.kind=forward_kl", "steps=1"]
  opened, (row,) = run(config, tmp_path, f"teacher.path={config[1]}/teacher", "horizon.max=6", *flags)
  tokenizer, chosen = opened.pair.tokenizer, opened.stream.take(0, 4)
  lengths = [len(tokenizer.hf(opened.prompts.answers[i])["input_ids"]) + 1 for i in chosen]  # and end-of-sequence
  assert max(lengths) > 6
  assert row["tokens"] == 2 * sum(min(length, 6) for length in lengths) and row["dataset_rows"] == 8
  assert row["truncated"] == np.mean([length > 6 for length in lengths]) and row["decode_gap"] is None


def test_a_reference_is_read_and_remembered(config, tmp_path):
  reference = tmp_path / "reference"
  shutil.copytree(config[1] / "student", reference)
  models = [f"teacher.path={config[1]}/teacher", f"reference.path={reference}", "objective.kind=extrapolated"]
  _, (row,) = run(config, tmp_path / "w", *models, "steps=1", mesh=(2, 2, 2))
  assert np.isfinite(row["loss"])
  data = bytearray((reference / "model.safetensors").read_bytes())
  data[-3] ^= 1
  (reference / "model.safetensors").write_bytes(data)
  with pytest.raises(InputError, match="not the reference"):
    run(config, tmp_path / "w", *models, "steps=2", mesh=(2, 2, 2))


@pytest.mark.parametrize(
  "flags, words",
  [
    (["objective.kind=extrapolated"], "give config.reference.path"),
    (["reference.path={pair}/student"], "reads no reference"),
    (["objective.dataset_share=0.5"], "config.data.answer_field"),
    (["objective.dataset_share=1.5"], "dataset_share.*from 0 to 1"),
    (["data.answer_field=long", "objective.dataset_share=0.5", "objective.kind=sampled"], "own tokens"),
    (["data.answer_field=long", "objective.dataset_share=0.5", "objective.kind=lsm + head_tail_teacher"], "own tokens"),
    (["data.answer_field=long", "objective.dataset_share=0.5", "objective.select_by=entropy"], "select_by"),
    (["teacher.path={pair}/teacher", "teacher.ema=0.1"], "teacher.ema.*unless teacher.path is 'student'"),
    (["teacher.ema=0.1", "teacher.int8=true"], "teacher.int8"),
    (["rollout.max_teacher_prompt=48"], "teacher_prompt_field is empty"),
    (["data.teacher_prompt_field=hintet"], "hintet"),
    (["data.teacher_prompt_field=hinted", "rollout.max_teacher_prompt=2"], "the teacher.*allows 2"),
  ],
)
def test_what_does_not_go_together_is_refused(config, tmp_path, flags, words):
  with pytest.raises(InputError, match=words):
    run(config, tmp_path / "w", *(flag.format(pair=config[1]) for flag in flags))
  assert not (tmp_path / "w").exists()


def test_a_plan_refuses_what_a_run_would(config):
  for flags in (["objective.kind=extrapolated"], [f"reference.path={config[1]}/student"]):
    with pytest.raises(InputError, match="reference"):
      read_architectures(load_config(config[0], [f"--config.{flag}" for flag in flags]))
