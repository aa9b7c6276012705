"""The teacher's canary: against transformers, on meshes, after a resume, and with a teacher that changes in memory."""

import json
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from opd_jax import command_line, models
from opd_jax.command_line import load_config
from opd_jax.errors import InputError, TrainingError
from opd_jax.telemetry.workdir import RunLog
from opd_jax.training import loop, open_run, train
from opd_jax.training.audit import audit_pair
from opd_jax.training.canary import Canary, Reader, cut
from tests.conftest import timeless_rows

FLAGS = ["horizon.kind=full", "horizon.max=8", "horizon.buckets=8", "steps=10", "checkpoint.every=5"]


def opened(config, workdir, *flags, mesh=(1, 1, 1)):
  shape = [f"mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), mesh)]
  loaded = load_config(config, [f"--config.{flag}" for flag in (*FLAGS, *flags, *shape)])
  return open_run(loaded, workdir, jax.devices()[: np.prod(mesh)])


def rows(workdir):
  return timeless_rows(workdir / "metrics.jsonl")


def saved_steps(workdir):
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    return sorted(manager.all_steps())


def lose_a_matrix(model):
  """As memory that fails would: the arrays that a run holds are no longer there, and zeros in their place."""
  mlp = model.params["layers"]["mlp"]
  mlp["down_df"] = 0 * mlp["down_df"]


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
  """Ten steps in one go, on one device."""
  workdir = tmp_path_factory.mktemp("whole")
  run = opened(tiny_config, workdir)
  train(run)
  return run, workdir


def test_it_is_the_teachers_greedy_answer_and_its_log_probs_as_transformers_has_them(whole, tiny_pair):
  torch = pytest.importorskip("torch")
  from transformers import AutoModelForCausalLM

  run, workdir = whole
  content = json.loads((workdir / "canary.json").read_text())
  teacher = AutoModelForCausalLM.from_pretrained(tiny_pair / "teacher", dtype=torch.float32)
  first = run.stream.take(0, 4)
  assert [row["prompt"] for row in content["rows"]] == [list(run.prompts.token_ids[i]) for i in first]
  for row in content["rows"]:
    prompt, answer = row["prompt"], row["answer"]
    with torch.no_grad():
      logits_tv = teacher(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    logprob_tv = torch.log_softmax(logits_tv[:, : run.pair.vocab_size], dim=-1).numpy()  # the rest has no text
    assert logprob_tv.argmax(-1).tolist() == answer
    assert (len(answer) == 8 or answer[-1] in run.pair.eos_ids) and not set(answer[:-1]) & set(run.pair.eos_ids)
    np.testing.assert_allclose(row["logprobs"], logprob_tv[np.arange(len(answer)), answer], atol=1e-4)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)  # four rows divide over the first alone
def test_eight_devices_read_what_one_wrote_and_write_the_same(whole, tiny_config, mesh):
  workdir = whole[1]
  kept, run = Canary.load(workdir), opened(tiny_config, workdir, mesh=mesh)
  teacher = models.load(run.teacher_path, dtype="float32", mesh=run.mesh)
  reader = Reader(run.table, run.mesh, teacher, kept.prompts, 32, 8)
  assert kept.difference(reader.read(kept.answers)[0]) < 1e-4 < kept.tolerance
  answers_bs, logprob_bs = reader.write()
  assert cut(answers_bs, run.pair.eos_ids) == kept.answers and kept.difference(logprob_bs) < 1e-4
  assert len(run.table.compiles) == 1
  student = models.load(run.student_path, dtype="float32", mesh=run.mesh)
  watch, _ = audit_pair(run, teacher, student, resumed=True)
  assert watch.fault() == ""
  lose_a_matrix(teacher)
  assert "the teacher's log-probs" in watch.fault()
  assert Canary.load(workdir) == kept


def disturb(monkeypatch, after):
  """Has the teacher of the next run lose a matrix once the row of step `after` is written; 0: as it is loaded."""
  real_load, real_step, teachers = loop.load_frozen, RunLog.step, []

  def load(run):
    frozen, about = real_load(run)
    teachers.append(frozen.teacher)
    if after == 0:
      lose_a_matrix(frozen.teacher)
    return frozen, about

  def step(log, row):
    real_step(log, row)
    if row["step"] == after:
      lose_a_matrix(teachers[-1])

  monkeypatch.setattr(loop, "load_frozen", load)
  monkeypatch.setattr(RunLog, "step", step)


@pytest.mark.parametrize("every, caught", [(3, 9), (100, 10)])
def test_a_teacher_that_changes_in_memory_stops_the_run_and_no_checkpoint_is_made_of_it(
  whole, tiny_config, tmp_path, monkeypatch, every, caught
):
  """Every third step, and before each checkpoint; the same command then ends where a sound run does."""
  flag = f"teacher.canary_every={every}"
  with monkeypatch.context() as patched:
    disturb(patched, after=7)
    with pytest.raises(TrainingError) as stopped:
      train(opened(tiny_config, tmp_path, flag))
  message = str(stopped.value)
  assert message.startswith(f"step {caught}: the teacher's log-probs") and "\n" not in message
  assert "goes on from step 5" in message and saved_steps(tmp_path) == [5]
  assert rows(tmp_path)[:8] == rows(whole[1])[:8] and len(rows(tmp_path)) == caught
  if every == 3:
    train(opened(tiny_config, tmp_path, flag))
    assert rows(tmp_path) == rows(whole[1]) and saved_steps(tmp_path) == [5, 10]


def test_a_teacher_that_is_read_wrongly_at_a_resume_is_refused(whole, tiny_config, tmp_path, monkeypatch):
  workdir = tmp_path / "w"
  shutil.copytree(whole[1], workdir)
  before = {path.name: path.read_bytes() for path in workdir.glob("*.json*")}
  disturb(monkeypatch, after=0)
  with pytest.raises(InputError, match=r"teacher.*differ by up to.*canary\.json") as refused:
    train(opened(tiny_config, workdir, "steps=12"))
  assert "\n" not in str(refused.value) and saved_steps(workdir) == [5, 10]
  del before["config.json"]  # it says steps=12 by now
  assert before == {name: (workdir / name).read_bytes() for name in before}


def test_a_teacher_whose_log_probs_are_no_numbers_is_refused_at_once(tiny_pair, tiny_config, tmp_path, monkeypatch):
  real = loop.load_frozen

  def load(run):
    frozen, about = real(run)
    frozen.teacher.params["embed_vd"] = np.nan * frozen.teacher.params["embed_vd"]
    return frozen, about

  monkeypatch.setattr(loop, "load_frozen", load)
  with pytest.raises(InputError, match="teacher: the teacher gives log-probs that are no numbers"):
    train(opened(tiny_config, tmp_path))
  assert not rows(tmp_path) and not (tmp_path / "canary.json").exists()


@pytest.mark.parametrize(
  "content",
  [
    "{",
    "[]",
    '{"tolerance": 0.1, "rows": [{"prompt": [1], "answer": [2]}]}',
    '{"tolerance": 0.1, "rows": [{"prompt": [1], "answer": [2], "logprobs": []}]}',
  ],
)
def test_a_damaged_file_is_named(tmp_path, content):
  (tmp_path / "canary.json").write_text(content)
  with pytest.raises(InputError, match=r"canary\.json is damaged.*move it away"):
    Canary.load(tmp_path)


def test_an_answer_ends_with_the_first_end():
  answers_bs = np.array([[4, 5, 6], [4, 0, 0], [1, 4, 0]])
  assert cut(answers_bs, (0, 1)) == ((4, 5, 6), (4, 0), (1,))


def test_what_is_no_number_is_infinitely_far():
  canary = Canary(((1,), (2,)), ((3, 4), (5,)), ((-1.0, -2.0), (-3.0,)), 0.1)
  assert canary.difference(np.array([[-1.0, -2.5], [-3.0, 9.0]])) == 0.5
  assert canary.difference(np.array([[-1.0, np.nan], [-3.0, 9.0]])) == np.inf


def test_a_fault_is_one_line_and_status_1(tiny_config, monkeypatch, capsys):
  def main(config):
    raise TrainingError("step 3: something broke")

  monkeypatch.setattr(sys, "argv", ["opd_jax", f"--config={tiny_config}"])
  with pytest.raises(SystemExit) as stop:
    command_line.run(main)
  assert stop.value.code == 1 and capsys.readouterr().err == "error: step 3: something broke\n"
