"""Checkpoints that are damaged, missing or cannot be written: the newest sound one is used, and no other is lost."""

import os
import resource
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models
from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.errors import InputError
from opd_jax.programs import unplanned_compiles
from opd_jax.training.checkpoint import Checkpointer, Progress
from opd_jax.training.state import TrainState, abstract_state, init_state, make_optimizer

ARCHITECTURE = models.Architecture.from_config(
  {
    "model_type": "qwen2",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
  },
  "test",
)
OPTIMIZER = make_optimizer(from_config_dict({}, check=False))
UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes them last and restores without them


@pytest.fixture(scope="module")
def state() -> TrainState:
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  return init_state(models.initialize(ARCHITECTURE, jax.random.key(0), "float32", mesh=mesh), OPTIMIZER)


@pytest.fixture(scope="module")
def template(state):
  return abstract_state(ARCHITECTURE, OPTIMIZER, make_mesh((1, 1, 1), jax.devices()[:1]))


def at(state: TrainState, step: int) -> TrainState:
  """A state that tells its step by every number."""
  return jax.tree.map(lambda x: jnp.full_like(x, step), state)


def save(checkpoints: Checkpointer, state: TrainState, step: int) -> None:
  checkpoints.save(at(state, step), Progress(step, 0, 8 * step, None, "t"), {})


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory) -> Path:
  """Checkpoints 1 and 2."""
  workdir = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpointer(workdir, 5)
  for step in (1, 2):
    save(checkpoints, state, step)
  checkpoints.close()
  return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Path:
  """A copy of them, to break."""
  return shutil.copytree(saved, tmp_path / "w")


def test_nothing_is_compiled_to_save_what_several_devices_hold(tmp_path):
  """A checkpoint falls in the middle of a run, where whatever is compiled is a surprise."""
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])
  state = init_state(models.initialize(ARCHITECTURE, jax.random.key(0), "float32", mesh=mesh), OPTIMIZER)
  assert any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.student.params))
  before = unplanned_compiles()
  checkpoints = Checkpointer(tmp_path, 1)
  checkpoints.save(state, Progress(1, 0, 8, None, "t"), {})
  checkpoints.close()
  assert unplanned_compiles() == before


def contents(folder: Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holds(checkpoints: Checkpointer, template: TrainState, step: int) -> bool:
  """Whether what is restored is that of `step`, every number of it."""
  restored, progress = checkpoints.restore(template), checkpoints.progress()
  numbers = jax.tree.leaves(restored)
  return progress == Progress(step, 0, 8 * step, None, "t") and all(np.all(x == step) for x in numbers)


def truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


DAMAGES = {"truncated": truncate, "flipped": flip, "missing": Path.unlink}


@pytest.mark.parametrize("how", DAMAGES)
def test_each_file_in_turn(saved, workdir, template, how):
  two, aside = workdir / "checkpoints" / "2", workdir / "checkpoints" / "2.damaged"
  whole = contents(two)
  assert len(whole) > 8 and set(UNREAD) | {"manifest.json"} <= whole.keys()
  for name in filter(whole.get, whole):  # an empty file can only be missing
    DAMAGES[how](two / name)
    broken = contents(two)
    reader = Checkpointer(workdir, 5)
    harmless = name in UNREAD or (name, how) == ("manifest.json", "missing")
    assert reader.latest() == (2 if harmless else 1), name
    if harmless:
      assert holds(reader, template, 2), name
      assert reader.damaged == ()
    reader.close()
    assert contents(two) == broken, name
    if not harmless:
      checkpoints = Checkpointer(workdir, 5, repairs=True)
      (line,) = checkpoints.damaged
      assert name in line and str(two) in line and "2.damaged" in line and "from step 1" in line and "\n" not in line
      assert checkpoints.latest() == 1 and contents(aside) == broken and not two.exists(), name
      checkpoints.close()
      shutil.rmtree(aside)
    shutil.rmtree(two, ignore_errors=True)
    shutil.copytree(saved / "checkpoints" / "2", two)


def test_the_one_before_is_restored_and_the_step_can_be_saved_again(workdir, state, template):
  folder = workdir / "checkpoints"
  for number in ("", "1"):  # the second time, 2.damaged is taken
    truncate(next((folder / "2" / "state").rglob("manifest.ocdbt")))
    broken = contents(folder / "2")
    checkpoints = Checkpointer(workdir, 5, repairs=True)
    assert checkpoints.latest() == 1 and holds(checkpoints, template, 1)
    save(checkpoints, state, 2)
    checkpoints.close()
    assert contents(folder / f"2.damaged{number}") == broken
    again = Checkpointer(workdir, 5)
    assert again.latest() == 2 and again.damaged == () and holds(again, template, 2)
    again.close()


def test_where_none_is_sound_nothing_is_touched(workdir):
  for step in ("1", "2"):
    flip(next((workdir / "checkpoints" / step / "state").rglob("manifest.ocdbt")))
  before = contents(workdir)
  for repairs in (False, True):
    with pytest.raises(InputError, match=r"every checkpoint.*2: state.*; 1: state.*other --workdir") as caught:
      Checkpointer(workdir, 5, repairs=repairs)
    assert "\n" not in str(caught.value)
  assert contents(workdir) == before


@pytest.mark.parametrize("sound", [True, False])
def test_an_empty_folder_is_no_checkpoint(workdir, state, template, sound):
  if not sound:
    shutil.rmtree(workdir / "checkpoints")
  (workdir / "checkpoints" / "99").mkdir(parents=True)
  reader = Checkpointer(workdir, 5)
  assert reader.latest() == (2 if sound else None)
  with pytest.raises(InputError, match="'99'" if sound else "no finished checkpoint"):
    reader.find("99")
  reader.close()
  checkpoints = Checkpointer(workdir, 5, repairs=True)
  save(checkpoints, state, 3)
  checkpoints.close()
  again = Checkpointer(workdir, 5)
  assert again.latest() == 3 and holds(again, template, 3)
  again.close()


def test_a_checkpoint_without_a_manifest_loads_as_it_did(workdir, template):
  (workdir / "checkpoints" / "2" / "manifest.json").unlink()
  checkpoints = Checkpointer(workdir, 5, repairs=True)
  assert checkpoints.latest() == 2 and checkpoints.damaged == () and holds(checkpoints, template, 2)
  checkpoints.close()
  shutil.rmtree(workdir / "checkpoints" / "2" / "progress")
  checkpoints = Checkpointer(workdir, 5)
  assert checkpoints.latest() == 1 and "progress is missing" in checkpoints.damaged[0]
  checkpoints.close()


def test_a_step_that_is_asked_for_must_be_sound(workdir):
  truncate(next((workdir / "checkpoints" / "1" / "state").rglob("manifest.ocdbt")))
  checkpoints = Checkpointer(workdir, 5)
  assert checkpoints.find("newest") == checkpoints.find("2") == 2
  with pytest.raises(InputError, match=r"checkpoints/1 is damaged: state"):
    checkpoints.find("1")
  checkpoints.close()


def test_a_full_disk_is_one_line_and_costs_no_older_checkpoint(workdir, state, template, capfd):
  # A limit on the size of a file fails a write in its middle, as a full disk does. keep=1: a save deletes the last.
  before, limits = contents(workdir / "checkpoints" / "2"), resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpoints = Checkpointer(workdir, 1)
  resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
  try:
    with pytest.raises(InputError, match=r"cannot write checkpoint .*/3: File too large; free some") as caught:
      save(checkpoints, state, 3)
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert "\n" not in str(caught.value) and capfd.readouterr().err == ""
  again = Checkpointer(workdir, 1, repairs=True)
  assert again.latest() == 2 and again.damaged == () and contents(workdir / "checkpoints" / "2") == before
  save(again, state, 3)
  again.close()
  last = Checkpointer(workdir, 1)
  assert last.latest() == 3 and holds(last, template, 3)
  last.close()


def test_a_folder_that_cannot_be_written_is_one_line(saved, state):
  with tempfile.TemporaryDirectory() as folder:  # not below tmp_path, whose parents are closed to other users
    workdir = shutil.copytree(saved, Path(folder) / "w")
    for path in (Path(folder), workdir, workdir / "checkpoints"):
      path.chmod(0o755)
    checkpoints = Checkpointer(workdir, 5)
    (workdir / "checkpoints").chmod(0o555)
    user = os.geteuid()
    if user == 0:  # whom no permission stops
      os.seteuid(65534)
    try:
      with pytest.raises(InputError, match=r"cannot write checkpoint .*/3: Permission denied"):
        save(checkpoints, state, 3)
        checkpoints.close()
    finally:
      os.seteuid(user)
      (workdir / "checkpoints").chmod(0o755)
