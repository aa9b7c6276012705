"""Files on first use: the same bytes every time, nothing half made, one maker at a time."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import arithmetic
from opd_jax.arithmetic import Recipe
from opd_jax.errors import InputError
from opd_jax.models import load, logits, read_architecture
from opd_jax.pair import open_pair

# A recipe that teaches nothing, in seconds.
TINY = Recipe(
  layers=1,
  width=16,
  heads=2,
  mlp=16,
  window=2,
  window_rows=4,
  window_exact=0.0,
  rows=2,
  exact=0.0,
  check_every=2,
  decay_steps=1,
  student_steps=2,
  train_prompts=5,
  eval_prompts=3,
)
PARTS = ("teacher", "student", "train.jsonl", "eval.jsonl")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("OPD_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
  return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def visible(cache: Path) -> list[str]:
  return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_outline_has_all_but_weights_and_make_adds_them(cache, capsys):
  real = {part: Path(arithmetic.outline(f"arithmetic:late/{part}", TINY)) for part in PARTS}
  before = contents(cache)
  assert not any(name.endswith(".safetensors") for name in before)
  pair = open_pair(real["student"], real["teacher"])
  assert pair.eos_ids == (pair.tokenizer.hf.eos_token_id,) and pair.student == pair.teacher
  for part, count in (("train.jsonl", 5), ("eval.jsonl", 3)):
    rows = [json.loads(line) for line in real[part].read_text().splitlines()]
    assert len(rows) == count and all(set(row) == {"prompt", "answer"} for row in rows)

  assert arithmetic.make("arithmetic:late/train.jsonl", TINY) == str(real["train.jsonl"])
  assert contents(cache) == before, "prompts need no weights"
  assert arithmetic.make("arithmetic:late/student", TINY) == str(real["student"])
  after = contents(cache)
  new = {str(Path(name).parent.name) for name in after.keys() - before.keys()}
  assert new == {"late-student", "teacher"} and all(after[name] == before[name] for name in before)
  assert "late" in capsys.readouterr().out

  student, teacher = (load(real[part], dtype="float32") for part in ("student", "teacher"))
  assert student.config == read_architecture(real["student"])
  tokens = [[0, 1, 2, 3]]
  assert np.abs(logits(student, tokens) - logits(teacher, tokens)).max() > 1e-4
  assert arithmetic.outline("arithmetic:uniform/teacher", TINY) == str(real["teacher"])


def test_a_second_call_makes_nothing(cache, monkeypatch):
  arithmetic.make("arithmetic:uniform/student", TINY)
  before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
  monkeypatch.setattr("opd_jax.arithmetic.pretraining.make_teacher", None)
  monkeypatch.setattr("opd_jax.arithmetic.pretraining.make_student", None)
  arithmetic.make("arithmetic:uniform/student", TINY)
  arithmetic.make("arithmetic:late/teacher", TINY)
  assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == before


def test_the_same_recipe_gives_the_same_bytes(tmp_path, monkeypatch):
  made = []
  for name in ("one", "two"):
    monkeypatch.setenv("OPD_JAX_CACHE", str(tmp_path / name))
    arithmetic.make("arithmetic:uniform/student", TINY)
    made.append(contents(tmp_path / name))
  assert made[0] == made[1] and any(name.endswith(".safetensors") for name in made[0])


def test_another_recipe_lives_elsewhere(cache):
  first = arithmetic.outline("arithmetic:uniform/teacher", TINY)
  second = arithmetic.outline("arithmetic:uniform/teacher", dataclasses.replace(TINY, seed=1))
  assert first != second
  files = [Path(folder).parent / "train.jsonl" for folder in (first, second)]
  assert files[0].read_text() != files[1].read_text()


@given(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]))
def test_the_hash_depends_on_every_field(name):
  changed = dataclasses.replace(Recipe(), **{name: getattr(Recipe(), name) + 1})
  assert changed.hash != Recipe().hash == Recipe(**dataclasses.asdict(Recipe())).hash


def test_a_failure_in_between_leaves_nothing_and_is_made_good(cache, monkeypatch):
  class Interrupt(Exception):
    pass

  def interrupted(*_):
    raise Interrupt

  with monkeypatch.context() as patch:
    patch.setattr("opd_jax.arithmetic.store.save_tokenizer", interrupted)
    with pytest.raises(Interrupt):
      arithmetic.outline("arithmetic:uniform/teacher", TINY)
  assert visible(cache) == []
  with monkeypatch.context() as patch:
    patch.setattr("opd_jax.arithmetic.pretraining.make_student", interrupted)
    with pytest.raises(Interrupt):
      arithmetic.make("arithmetic:uniform/student", TINY)
  (root,) = visible(cache)
  weights = list(cache.rglob("*.safetensors"))
  assert [path.parent.name for path in weights] == ["teacher"], "what was finished is kept"
  arithmetic.make("arithmetic:uniform/student", TINY)
  assert visible(cache) == [root] and len(list(cache.rglob("*.safetensors"))) == 2


MAKER = """
import sys, time
from opd_jax import arithmetic
from opd_jax.arithmetic import pretraining, store
sys.path.insert(0, {tests!r})
from test_store import TINY
save = store.save
def slow(*args, **kwargs):
  save(*args, **kwargs)
  print("saving", flush=True)
  time.sleep(60 if sys.argv[1] == "hang" else 0)
store.save = slow
arithmetic.make("arithmetic:uniform/student", TINY)
print("made", flush=True)
"""


def start_maker(how: str) -> subprocess.Popen:
  code = MAKER.format(tests=str(Path(__file__).parent))
  return subprocess.Popen([sys.executable, "-c", code, how], stdout=subprocess.PIPE, text=True, cwd=ROOT)


ROOT = Path(__file__).parents[2]


def wait_for(process: subprocess.Popen, word: str) -> None:
  for line in process.stdout:
    if word in line:
      return
  pytest.fail(f"the process ended without saying {word!r}")


def test_a_killed_maker_leaves_no_half_and_a_waiting_one_takes_over(cache):
  first = start_maker("hang")
  second = None
  try:
    wait_for(first, "saving")
    assert not list(cache.rglob("arithmetic-*/*/model.safetensors")), "weights appear only when all is written"
    second = start_maker("go")
    wait_for(second, "waiting for another process")
    os.kill(first.pid, signal.SIGKILL)
    wait_for(second, "made")
    assert second.wait(timeout=60) == 0
  finally:
    for process in filter(None, (first, second)):
      process.kill()
      process.wait()
      process.stdout.close()
  assert len(visible(cache)) == 1
  assert len(list(cache.rglob("arithmetic-*/*/model.safetensors"))) == 2


def test_other_paths_come_back_untouched(cache):
  for path in ("", "some/folder", "org/name@main", "data.jsonl", "prepared:train"):
    assert not arithmetic.is_embedded(path)
    assert arithmetic.outline(path) == path == arithmetic.make(path)
  assert not cache.exists()


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("arithmetic:unifrom/teacher", "no variant `unifrom` (did you mean `uniform`?)"),
    ("arithmetic:late/studnet", "no part `studnet` (did you mean `student`?)"),
    ("arithmetic:late", "no part ``"),
    ("arithmetic:late/../teacher", "no part `../teacher`"),
  ],
)
def test_unknown_names(cache, path, message):
  for function in (arithmetic.outline, arithmetic.make):
    with pytest.raises(InputError) as error:
      function(path)
    assert message in str(error.value)
  assert not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("OPD_JAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(InputError, match="OPD_JAX_CACHE"):
    arithmetic.outline("arithmetic:uniform/teacher", TINY)


def test_a_seed_after_the_variant_is_another_pair(cache):
  tokens = [[0, 1, 2, 3]]
  made = {}
  for name in ("uniform", "uniform@0", "uniform@5"):
    folder = arithmetic.make(f"arithmetic:{name}/student", TINY)
    made[name] = folder, np.asarray(logits(load(folder, dtype="float32"), tokens))
  assert made["uniform"][0] == made["uniform@0"][0] != made["uniform@5"][0]
  assert np.abs(made["uniform"][1] - made["uniform@5"][1]).max() > 1e-3
  for bad in ("uniform@", "uniform@x", "uniform@-1", "uniform@1.5"):
    with pytest.raises(InputError, match="no seed"):
      arithmetic.outline(f"arithmetic:{bad}/student", TINY)
