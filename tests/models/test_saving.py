"""Checkpoints out: what transformers loads, whole or not at all."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models
from opd_jax.errors import InputError

FIELDS = dict(
  vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, head_dim=8, initializer_range=0.25, eos_token_id=[3, 4],
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)


def make(family: str, **fields) -> models.Model:
  config = models.Architecture.from_config({"model_type": family, **FIELDS, **fields}, "test")
  return models.initialize(config, jax.random.key(0), jnp.float32)


@pytest.mark.parametrize(
  ("family", "fields", "shard"),
  [
    ("llama", dict(attention_bias=True, rope_theta=5e5), 10**9),
    ("qwen2", dict(tie_word_embeddings=True), 30_000),
    ("qwen3", dict(rope_scaling=YARN), 10**9),
  ],
)
def test_transformers_loads_what_was_saved(family, fields, shard, tmp_path):
  import torch
  from transformers import AutoModelForCausalLM

  model, path = make(family, **fields), tmp_path / "out"
  models.save(model, path, max_shard_bytes=shard)
  assert len(list(path.glob("*.safetensors"))) == 1 if shard == 10**9 else len(list(path.glob("model-*-of-*"))) > 2
  reference, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
  assert reference.dtype == torch.float32 and not any(report.values())
  tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
  with torch.no_grad():
    expected = reference(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(models.logits(model, tokens), expected, atol=1e-4, rtol=0)

  again = models.load(path, dtype=jnp.float32)
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_source_gives_its_fields_and_its_tokenizer(qwen3_folder, tmp_path, edit_config):
  import shutil

  source = shutil.copytree(qwen3_folder, tmp_path / "source")
  edit_config(source, unsloth_version="1", torch_dtype="float32")
  for name in ("tokenizer.json", "generation_config.json", "merges.txt", "trainer_state.json"):
    (source / name).write_text("{}")
  models.save(models.load(source, dtype=jnp.bfloat16), tmp_path / "out", source=source)
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  before = json.loads((source / "config.json").read_text())
  assert written == {**before, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
  names = {file.name for file in (tmp_path / "out").iterdir()}
  assert names == {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "merges.txt"}
  with pytest.raises(InputError, match="another architecture"):
    models.save(make("llama"), tmp_path / "other", source=source)
  assert not (tmp_path / "other").exists()


def test_a_taken_folder_is_not_touched(tmp_path):
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="exists already"):
    models.save(make("qwen2"), tmp_path / "taken")
  assert [file.name for file in (tmp_path / "taken").iterdir()] == ["notes.txt"]


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp
from opd_jax import models
from opd_jax.models import saving

written = saving.save_file
def killed(tensors, path, **options):
  written(tensors, path, **options)
  if "00002" in path.name:
    os.kill(os.getpid(), signal.SIGKILL)
saving.save_file = killed
models.save(models.load(sys.argv[1], dtype=jnp.float32), sys.argv[2], max_shard_bytes=20_000)
"""


def test_a_kill_leaves_no_half_folder_and_the_next_save_works(qwen3_folder, tmp_path):
  path, environment = tmp_path / "out", {**os.environ, "JAX_PLATFORMS": "cpu"}
  run = subprocess.run([sys.executable, "-c", KILLED, qwen3_folder, path], env=environment, timeout=300)
  assert run.returncode == -signal.SIGKILL
  assert not path.exists()
  models.save(models.load(qwen3_folder, dtype=jnp.float32), path)
  assert models.load(path, dtype=jnp.float32).config.model_type == "qwen3"
