"""Tiny random checkpoints written by transformers: the independent side of every comparison here."""

import json
from pathlib import Path

import pytest

SIZES = dict(
  vocab_size=97,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=512,
)


def _write_checkpoint(folder: Path, family: str, dtype: str = "float32", max_shard_size: str = "5GB", **fields) -> Path:
  """Weights wide enough that logits differ clearly, and norms and biases that are not what they start as."""
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  torch.set_num_threads(1)  # for models this small, threads only wait for each other
  torch.manual_seed(0)
  config = AutoConfig.for_model(family, **{**SIZES, "eos_token_id": None, "bos_token_id": None, **fields})
  model = AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.normal_(mean=1.0 if "norm" in name else 0.0, std=0.25)
  model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
  return folder


def _edit_config(folder: Path, **fields) -> None:
  """Sets fields of a config.json; None takes a field out."""
  path = folder / "config.json"
  config = {**json.loads(path.read_text()), **fields}
  path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory):
  """One Qwen3 checkpoint, untied, for tests that only read it."""
  return _write_checkpoint(tmp_path_factory.mktemp("qwen3"), "qwen3", head_dim=16)


@pytest.fixture(scope="session")
def write_checkpoint():
  """(folder, family, dtype, max_shard_size, **config fields) -> folder."""
  return _write_checkpoint


@pytest.fixture(scope="session")
def edit_config():
  """(folder, **fields): changes its config.json; None removes a field."""
  return _edit_config
