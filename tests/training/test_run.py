"""Whole runs of the tiny pair, in process: resuming, what the workdir holds, programs compiled, memory."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import opd_jax
from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.distributed import place_rows
from opd_jax.errors import InputError
from opd_jax.rollout import Rollout
from opd_jax.telemetry.workdir import sole_writer
from opd_jax.training import open_run, train
from opd_jax.training.batch import Batch
from opd_jax.training.checkpoint import Checkpointer
from opd_jax.training.state import Frozen, abstract_state, make_optimizer
from tests.conftest import saved_arrays, timeless_rows


def run(config_file, workdir, *flags, devices=1):
  opened = open_run(load_config(config_file, list(flags)), workdir, jax.devices()[:devices])
  train(opened)
  return opened


@pytest.fixture(scope="module")
def evaluated(tiny_pair, tiny_config):
  return tiny_config, [
    "--config.steps=10",
    "--config.horizon.every=3",
    f"--config.eval.path={tiny_pair}/prompts.jsonl",
    "--config.eval.prompts=8",
    "--config.eval.batch=8",
    "--config.eval.every=5",
    "--config.eval.samples=2",
    "--config.optimizer.micro_batches=2",
  ]


@pytest.fixture(scope="module")
def whole(evaluated, tmp_path_factory):
  """Ten steps in one go, on one device."""
  workdir = tmp_path_factory.mktemp("whole")
  config, flags = evaluated
  return run(config, workdir, *flags), workdir


def test_ten_steps_equal_five_and_resume_and_five_bit_for_bit(evaluated, whole, tmp_path):
  config, flags = evaluated
  _, expected = whole
  run(config, tmp_path, *flags, "--config.steps=5")
  assert len(timeless_rows(tmp_path / "metrics.jsonl")) == 5
  run(config, tmp_path, *flags)
  assert timeless_rows(tmp_path / "metrics.jsonl") == timeless_rows(expected / "metrics.jsonl")
  assert timeless_rows(tmp_path / "eval.jsonl") == timeless_rows(expected / "eval.jsonl")
  assert timeless_rows(tmp_path / "samples.jsonl") == timeless_rows(expected / "samples.jsonl")
  ours, theirs = saved_arrays(tmp_path, 10), saved_arrays(expected, 10)
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_run_killed_after_its_checkpoint_writes_no_step_twice(evaluated, whole, tmp_path):
  """Rows after the checkpoint, and a torn one, are what a kill leaves."""
  config, flags = evaluated
  _, expected = whole
  shutil.copytree(expected, tmp_path / "w")
  shutil.rmtree(tmp_path / "w" / "checkpoints" / "10")
  run(config, tmp_path / "x", *flags, "--config.steps=5")
  shutil.rmtree(tmp_path / "w" / "checkpoints")
  shutil.copytree(tmp_path / "x" / "checkpoints", tmp_path / "w" / "checkpoints")
  with open(tmp_path / "w" / "metrics.jsonl", "a") as file:
    file.write('{"step": 11, "lo')
  run(config, tmp_path / "w", *flags)
  assert timeless_rows(tmp_path / "w" / "metrics.jsonl") == timeless_rows(expected / "metrics.jsonl")


def test_the_workdir_holds_what_the_design_says(whole):
  opened, workdir = whole
  metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in metrics] == list(range(1, 11))
  for row in metrics:
    parts = row["seconds_rollout"] + row["seconds_update"] + row["seconds_compile"] + row["seconds_reshard"]
    assert 0 < parts <= row["seconds_step"]
    assert np.isfinite([row["loss"], row["grad_norm"], row["student_entropy"], row["teacher_entropy"]]).all()
    assert 0 < row["tokens"] <= 8 * row["horizon"]
  assert [row["horizon"] for row in metrics] == [4, 4, 4, 8, 8, 8, 12, 12, 12, 16]
  assert [row["bucket"] for row in metrics] == [8] * 6 + [16] * 4
  evaluations = timeless_rows(workdir / "eval.jsonl")
  assert {(row["step"], row["model"], row["k"], row["temperature"]) for row in evaluations} == {
    (step, model, k, t)
    for step, model in ((0, "teacher"), (0, "student"), (5, "student"), (10, "student"))
    for k, t in ((1, 0.0), (2, 1.0))
  }
  assert json.loads((workdir / "config.json").read_text())["steps"] == 10
  assert opened.prompts.dropped_long == 0


def test_each_program_is_compiled_once_per_bucket_and_nothing_else_is(whole):
  opened, workdir = whole
  compiled = [(c.program, c.bucket) for c in opened.table.compiles]
  assert sorted(compiled) == sorted(
    [("rollout", 8), ("rollout", 16), ("update", 8), ("update", 16)]
    + [("decode_layout", 0)] * 2
    + [("evaluate_greedy", 16), ("evaluate_sampled", 16), ("canary", 16)] * 2  # the teacher is another architecture
    + [("token_kl", 16)]  # of the student's samples
  )
  last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["compiles"] == len(compiled) and last["unplanned_compiles"] == 0


def test_nothing_left_to_do_is_said_and_changes_nothing(evaluated, whole, capsys):
  config, flags = evaluated
  _, workdir = whole
  before = (workdir / "metrics.jsonl").read_bytes(), (workdir / "eval.jsonl").read_bytes()
  opened = run(config, workdir, *flags)
  assert "nothing left to do" in capsys.readouterr().out and not opened.table.compiles
  assert before == ((workdir / "metrics.jsonl").read_bytes(), (workdir / "eval.jsonl").read_bytes())


def test_a_workdir_of_another_config_is_refused_and_left_alone(evaluated, whole):
  config, flags = evaluated
  _, workdir = whole
  before = {path: path.read_bytes() for path in workdir.glob("*.json*")}
  for change, name in (
    ("--config.seed=5", "seed"),
    ("--config.horizon.rho=0.5", "horizon.rho"),
    ("--config.optimizer.schedule=cosine", "optimizer.schedule"),
  ):
    with pytest.raises(InputError, match=f"another config.*{name}"):
      run(config, workdir, *flags, change)
  assert before == {path: path.read_bytes() for path in workdir.glob("*.json*")}


def test_another_teacher_in_the_same_place_is_noticed(tiny_pair, evaluated, tmp_path):
  config, flags = evaluated
  moved = tmp_path / "teacher"
  shutil.copytree(tiny_pair / "teacher", moved)
  flags = [*flags, "--config.eval.path=", f"--config.teacher.path={moved}"]
  run(config, tmp_path / "w", *flags, "--config.steps=1")
  weights = moved / "model.safetensors"
  data = bytearray(weights.read_bytes())
  data[-3] ^= 1
  weights.write_bytes(data)
  with pytest.raises(InputError, match="not the teacher"):
    run(config, tmp_path / "w", *flags, "--config.steps=2")


def test_eight_devices_take_the_steps_of_one(evaluated, whole, tmp_path):
  """From the same parameters the same tokens; the loss up to the order of float32 sums."""
  config, flags = evaluated
  _, expected = whole
  mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
  run(config, tmp_path, *flags, *mesh, "--config.steps=3", "--config.eval.path=", devices=8)
  for ours, theirs in zip(timeless_rows(tmp_path / "metrics.jsonl"), timeless_rows(expected / "metrics.jsonl")):
    assert ours["tokens"] == theirs["tokens"]
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.mesh.data=3"], "does not multiply"),
    (["--config.optimizer.micro_batches=4"], "micro-batch is 2.*multiple of 8"),
    (["--config.mesh.fsdp=1", "--config.mesh.tensor=8"], "4 query heads.*divisor of 4"),
    (["--config.rollout.max_prompt=2"], "shortest"),
    (["--config.data.prompt_field=promt"], "prompt"),
    (["--config.data.path=/nowhere/x.jsonl"], "does not exist"),
    (["--config.eval.path=/nowhere/x.jsonl"], "eval.path"),
    (["--config.student.path=/nowhere/model"], "/nowhere/model"),
  ],
)
def test_bad_input_is_refused_before_anything_is_made(tiny_config, tmp_path, flags, words):
  with pytest.raises(InputError, match=words):
    run(tiny_config, tmp_path / "w", *flags, devices=8)
  assert not (tmp_path / "w").exists()


def mesh_flags(shape):
  return [f"--config.mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), shape)]


@pytest.fixture(scope="module")
def cube(evaluated, tmp_path_factory):
  """Five steps of the run on (2, 2, 2), saved."""
  config, flags = evaluated
  workdir = tmp_path_factory.mktemp("cube")
  run(config, workdir, *flags, *mesh_flags((2, 2, 2)), "--config.eval.path=", "--config.steps=5", devices=8)
  return workdir


@pytest.mark.parametrize("after", [(1, 4, 1), (1, 1, 1)])
def test_a_checkpoint_continues_on_another_mesh(evaluated, whole, cube, tmp_path, after):
  """Five steps on (2, 2, 2), the sixth elsewhere: its loss is that of the run that never moved."""
  config, flags = evaluated
  _, expected = whole
  workdir, flags = tmp_path / "moved", [*flags, "--config.eval.path=", "--config.steps=6"]
  shutil.copytree(cube, workdir)
  run(config, workdir, *flags, *mesh_flags(after), devices=int(np.prod(after)))
  ours, theirs = timeless_rows(workdir / "metrics.jsonl"), timeless_rows(expected / "metrics.jsonl")[:6]
  assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
  np.testing.assert_allclose(ours[5]["loss"], theirs[5]["loss"], rtol=1e-4)


def test_a_checkpoint_gives_the_same_loss_on_any_mesh(evaluated, cube):
  """One state and one batch of tokens, so that nothing is left but the order of float32 sums."""
  config, flags = evaluated
  rng, P, S = np.random.default_rng(0), 32, 16
  lengths = rng.integers(1, S + 1, 8)
  batch = Rollout(
    tokens_bs=rng.integers(1, 250, (8, P + S)).astype(np.int32),
    prompt_mask_bp=np.arange(P) >= rng.integers(0, P, (8, 1)),
    completion_mask_bs=np.arange(S) < lengths[:, None],
    truncated_b=lengths == S,
    behaviour_logprob_bs=np.zeros((8, S), np.float32),
  )

  def loss_on(shape):
    flags_here = [*flags, *mesh_flags(shape), "--config.eval.path="]
    opened = open_run(load_config(config, flags_here), cube, jax.devices()[: int(np.prod(shape))])
    checkpoints = Checkpointer(cube, 2)
    state = checkpoints.restore(abstract_state(opened.pair.student, make_optimizer(opened.config), opened.mesh))
    checkpoints.close()
    teacher = models.load(opened.teacher_path, dtype="float32", mesh=opened.mesh)
    _, metrics = opened.table.run("update", S, state, Frozen(teacher), Batch(place_rows(opened.mesh, batch)))
    assert int(jax.device_get(metrics["tokens"].total)) == lengths.sum()
    return metrics["loss"].to_float()

  expected = loss_on((2, 2, 2))
  assert expected > 0.1
  for shape in ((1, 4, 1), (1, 1, 1)):
    assert loss_on(shape) == pytest.approx(expected, rel=1e-5), shape


def test_a_second_run_is_kept_out_of_the_workdir(tiny_config, tmp_path):
  with sole_writer(tmp_path), pytest.raises(InputError, match="another run is writing"):
    run(tiny_config, tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()


def test_of_two_runs_that_were_opened_in_one_workdir_the_second_to_begin_is_refused(tiny_config, tmp_path):
  open_one = functools.partial(opd_jax.distill, workdir=tmp_path, quiet=True, devices=jax.devices()[:1])
  config = load_config(tiny_config, ["--config.steps=1"])
  other = open_one(dataclasses.replace(config, seed=7))
  open_one(config).finish()
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  with pytest.raises(InputError, match=r"another config.*seed"):
    other.finish()
  assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rows_whose_checkpoints_are_gone_are_not_dropped(evaluated, whole, tmp_path):
  config = load_config(*evaluated)
  workdir = shutil.copytree(whole[1], tmp_path / "w")
  rows = (workdir / "metrics.jsonl").read_bytes()
  (workdir / "checkpoints").rename(tmp_path / "elsewhere")
  with pytest.raises(InputError, match="no folder checkpoints to go on from"):
    open_run(config, workdir, jax.devices()[:1])
  (workdir / "checkpoints").write_text("")
  with pytest.raises(InputError, match="checkpoints is a file"):
    open_run(config, workdir, jax.devices()[:1])
  assert (workdir / "metrics.jsonl").read_bytes() == rows


def test_a_workdir_that_is_removed_meanwhile_ends_the_run(tiny_config, tmp_path):
  def remove(row):
    if row["step"] == 2:
      shutil.rmtree(tmp_path / "w")

  config = load_config(tiny_config, ["--config.steps=4"])
  with pytest.raises(InputError, match="was removed while the run wrote to it"):
    opd_jax.distill(config, tmp_path / "w", on_step=remove, quiet=True, devices=jax.devices()[:1]).finish()


def test_a_run_goes_on_from_before_a_damaged_checkpoint_and_ends_the_same(evaluated, whole, tmp_path, capsys):
  config, flags = evaluated
  _, expected = whole
  run(config, tmp_path / "five", *flags, "--config.steps=5")
  workdir = shutil.copytree(expected, tmp_path / "w")
  folder = workdir / "checkpoints"
  shutil.copytree(tmp_path / "five" / "checkpoints" / "5", folder / "5")
  file = next(path for path in (folder / "10" / "state").rglob("*") if path.is_file() and path.parent.name == "d")
  file.write_bytes(b"")
  capsys.readouterr()
  run(config, workdir, *flags)
  (line,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
  assert f"{folder / '10'} is damaged: state/" in line and "kept as 10.damaged; going on from step 5" in line
  assert sorted(path.name for path in folder.iterdir()) == ["10", "10.damaged", "5"]
  assert timeless_rows(workdir / "metrics.jsonl") == timeless_rows(expected / "metrics.jsonl")
  assert timeless_rows(workdir / "eval.jsonl") == timeless_rows(expected / "eval.jsonl")
  ours, theirs = saved_arrays(workdir, 10), saved_arrays(expected, 10)
  for name in theirs:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_shorter_run_than_what_is_done_changes_no_record(evaluated, whole):
  config, flags = evaluated
  before = (whole[1] / "config.json").read_bytes()
  run(config, whole[1], *flags, "--config.steps=5")
  assert (whole[1] / "config.json").read_bytes() == before


def test_updates_that_are_no_numbers_are_told_and_not_made(tiny_config, tmp_path, capsys):
  run(tiny_config, tmp_path, "--config.optimizer.learning_rate=1e38", "--config.optimizer.clip=0.0")
  assert "step 1: update skipped: the update that it would make is not finite" in capsys.readouterr().out
  found = timeless_rows(tmp_path / "metrics.jsonl")
  assert [row["skipped"] for row in found] == [1] * 4 and np.isfinite([row["loss"] for row in found]).all()
