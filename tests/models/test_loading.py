"""Checkpoints in: every parameter filled from the right window, and every bad folder refused in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from opd_jax import models
from opd_jax.errors import InputError
from opd_jax.models.huggingface import _read_window

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(qwen3_folder, tmp_path) -> Path:
  """A copy that a test may spoil."""
  return Path(shutil.copytree(qwen3_folder, tmp_path / "checkpoint"))


def rewrite(folder: Path, change) -> None:
  tensors = load_file(folder / WEIGHTS)
  change(tensors)
  save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(path, **options) -> str:
  with pytest.raises(InputError) as error:
    models.load(path, dtype=jnp.float32, **options)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_missing_folder_and_missing_files(folder, tmp_path):
  assert "no such model folder" in refusal(tmp_path / "nothing")
  assert "is a file" in refusal(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  assert "safetensors" in refusal(folder)
  (folder / "config.json").unlink()
  assert "no config.json" in refusal(folder)


def test_config_that_is_no_json(folder):
  (folder / "config.json").write_text('{"model_type": ')
  assert "config.json: not valid JSON" in refusal(folder)
  (folder / "config.json").write_text("[]")
  assert "not a JSON object" in refusal(folder)


def test_missing_and_unexpected_tensors_are_named(folder):
  key = "model.layers.1.mlp.up_proj.weight"
  rewrite(folder, lambda tensors: tensors.pop(key))
  assert f"no tensor `{key}`" in refusal(folder)
  rewrite(folder, lambda tensors: tensors.update({key.replace("model.", "", 1): np.zeros((48, 32), np.float32)}))
  assert "did you mean `layers.1.mlp.up_proj.weight`" in refusal(folder)


def test_unexpected_tensors_are_refused_and_known_ones_ignored(folder, caplog):
  frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
  rewrite(folder, lambda tensors: tensors.update(frequencies))
  with caplog.at_level("INFO"):
    models.load(folder, dtype=jnp.float32)
  assert "inv_freq" in caplog.text
  rewrite(folder, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": np.zeros(48, np.float32)}))
  assert "up_proj.bias" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -8])
def test_truncated_weights(folder, kept):
  whole = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(whole[:kept])
  assert "not a whole safetensors file" in refusal(folder)


def test_git_lfs_pointer_instead_of_weights(folder):
  (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
  assert "Git LFS pointer" in refusal(folder)


def test_shape_and_dtype_that_do_not_fit(folder):
  key = "model.layers.0.self_attn.k_proj.weight"
  rewrite(folder, lambda tensors: tensors.update({key: np.zeros((16, 32), np.float32)}))
  message = refusal(folder)
  assert key in message and "[16, 32]" in message and "[32, 32]" in message
  rewrite(folder, lambda tensors: tensors.update({key: np.zeros((32, 32), np.int8)}))
  assert "I8" in refusal(folder)


def test_head_of_a_tied_model_must_be_the_embedding(folder, edit_config, caplog):
  edit_config(folder, tie_word_embeddings=True)
  assert "tie_word_embeddings" in refusal(folder)
  rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
  with caplog.at_level("INFO"):
    model = models.load(folder, dtype=jnp.float32)
  assert "lm_head.weight" in caplog.text and "head_vd" not in model.params


def test_bad_index(folder):
  (folder / WEIGHTS).rename(folder / "part.safetensors")
  index = folder / "model.safetensors.index.json"
  for weight_map, said in [
    ({"a": "../other.safetensors"}, "not a file of this folder"),
    ({"a": "/etc/passwd"}, "not a file of this folder"),
    ({"a": "gone.safetensors"}, "file missing"),
    ({}, "no `weight_map`"),
  ]:
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert said in refusal(folder)
  shutil.copy(folder / "part.safetensors", folder / "again.safetensors")
  index.write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "again.safetensors"}}))
  assert "both hold the tensor" in refusal(folder)
  index.write_text("{")
  assert "not valid JSON" in refusal(folder)


def test_hub_id_that_cannot_be_had_is_one_line(monkeypatch, tmp_path):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  monkeypatch.chdir(tmp_path)
  assert "Hugging Face hub" in refusal("nobody/nothing@main")


def test_hub_id_is_fetched_at_its_revision_without_pickles(monkeypatch, qwen3_folder, tmp_path):
  asked = {}

  def snapshot(name, **options):
    asked.update(options, name=name)
    return str(qwen3_folder)

  monkeypatch.setattr("opd_jax.hub.snapshot_download", snapshot)
  monkeypatch.chdir(tmp_path)
  models.load("org/name@abc123", dtype=jnp.float32)
  assert (asked["name"], asked["revision"]) == ("org/name", "abc123")
  assert not any(pattern.endswith(("bin", "pt", "*")) for pattern in asked["allow_patterns"])


class _Stored:
  """A checkpoint in memory that behaves like `Tensors`."""

  def __init__(self, tensors: dict[str, np.ndarray]):
    self._tensors = tensors

  def read(self, key, window):
    return self._tensors[key][window]


@settings(max_examples=80)
@given(data=st.data())
def test_any_window_of_any_parameter_is_that_window_of_the_whole(data):
  fields = dict(vocab_size=11, hidden_size=6, intermediate_size=5, num_hidden_layers=3, num_attention_heads=4)
  fields.update(model_type="llama", num_key_value_heads=2, head_dim=4, attention_bias=True)
  table = models.parameter_table(models.Architecture.from_config(fields, "test"))
  parameter = table[data.draw(st.sampled_from(sorted(table)))]
  bounds = tuple(
    data.draw(st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda b: b[0] < b[1]))
    for size in parameter.shape
  )
  rng = np.random.default_rng(0)
  stored = {key: rng.normal(size=parameter.stored_shape).astype(ml_dtypes.bfloat16) for key in parameter.keys}
  whole = np.stack([tensor.reshape(parameter.layer_shape) for tensor in stored.values()])
  whole = whole if parameter.stacked else whole[0]
  window = _read_window(_Stored(stored), parameter, bounds, np.dtype(np.float32))
  np.testing.assert_array_equal(window, whole[tuple(slice(*b) for b in bounds)].astype(np.float32))


MESH = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, numpy as np
from opd_jax import models
from opd_jax.distributed import make_mesh, sharding
from opd_jax.models.tensors import Tensors

reads = []
read = Tensors.read
def counted(self, key, window):
  found = read(self, key, window)
  reads.append((key, found.nbytes))
  return found
Tensors.read = counted

mesh = make_mesh((2, 2, 2))
model = models.load(sys.argv[1], dtype=jnp.float32, mesh=mesh)
loaded = list(reads)
alone = models.load(sys.argv[1], dtype=jnp.float32)
tokens = np.arange(32).reshape(2, 16)
with jax.set_mesh(mesh):
  sharded = models.logits(model, tokens)
table = models.parameter_table(model.config)
flat = lambda m: dict(jax.tree_util.tree_flatten_with_path(m.params)[0])
drawn = [models.initialize(model.config, jax.random.key(0), jnp.float32, mesh=m) for m in (mesh, None)]
print(json.dumps(dict(
  read=sum(size for _, size in loaded),
  largest={key: max(size for k, size in loaded if k == key) for key, _ in loaded},
  placed=all(
    flat(model)[tuple(map(jax.tree_util.DictKey, path))].sharding == sharding(mesh, p.axes, p.shape)
    for path, p in table.items()
  ),
  logits=float(abs(np.asarray(sharded) - models.logits(alone, tokens)).max()),
  equal=all(map(np.array_equal, *map(jax.tree.leaves, (model, alone)))),
  drawn=all(map(np.array_equal, *map(jax.tree.leaves, drawn))),
)))
"""


def test_a_simulated_mesh_reads_every_byte_once_and_only_in_slices(qwen3_folder):
  run = subprocess.run([sys.executable, "-c", MESH, qwen3_folder], capture_output=True, text=True, timeout=300)
  assert run.returncode == 0, run.stderr
  seen = json.loads(run.stdout.splitlines()[-1])
  stored = {key: tensor.nbytes for key, tensor in load_file(qwen3_folder / WEIGHTS).items()}
  assert seen["read"] == sum(stored.values())
  for key, size in stored.items():
    # fsdp and tensor halve every matrix each; the vocabulary of 97 does not divide, norms stay whole
    parts = 1 if "norm" in key else 2 if "embed" in key or "lm_head" in key else 4
    assert seen["largest"][key] == size // parts, key
  assert seen["placed"] and seen["equal"] and seen["drawn"]
  assert "Involuntary full rematerialization" not in run.stderr
  assert seen["logits"] < 1e-5
