"""The decoder against transformers, family by family: logits at every position, and greedy continuations."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models

LLAMA3 = dict(
  rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
YARN_FULL = dict(YARN, beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.7, truncate=False)
CASES = {
  "llama": ("llama", dict()),
  "llama-llama3-rope-tied": ("llama", dict(rope_parameters=dict(LLAMA3, rope_theta=5e5), tie_word_embeddings=True)),
  "llama-biases-head_dim": ("llama", dict(attention_bias=True, head_dim=12, rms_norm_eps=1e-3)),
  "llama-linear-rope": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=1e4))),
  "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
  "qwen2-yarn-sharded": ("qwen2", dict(rope_parameters=dict(YARN, rope_theta=1e6), max_shard_size="20KB")),
  "qwen3": ("qwen3", dict(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
  "qwen3-yarn-biases-tied": (
    "qwen3",
    dict(head_dim=8, rope_parameters=dict(YARN_FULL, rope_theta=1e4), attention_bias=True, tie_word_embeddings=True),
  ),
  "qwen3-attention_factor": (
    "qwen3",
    dict(head_dim=8, rope_parameters=dict(YARN, rope_theta=1e4, attention_factor=0.9)),
  ),
}


def reference_logits(folder, tokens) -> np.ndarray:
  import torch
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  with torch.no_grad():
    return model(torch.tensor(tokens)).logits.numpy()


@partial(jax.jit, static_argnames="new")
def greedy(model: models.Model, tokens_bp, new: int):
  """Prefill, then `new` - 1 decode steps through the cache."""
  b, p = tokens_bp.shape
  cache = models.Cache.empty(model.config, b, p + new, jnp.float32)
  hidden_bpd, cache = models.forward(model, tokens_bp, jnp.tile(jnp.arange(p), (b, 1)), jnp.ones((b, p), bool), cache)

  def step(carry, slot):
    token_b, cache = carry
    seen = jnp.broadcast_to(jnp.arange(p + new) <= slot, (b, p + new))
    hidden_b1d, cache = models.forward(model, token_b[:, None], jnp.full((b, 1), slot), seen, cache, slot)
    return (jnp.argmax(hidden_b1d[:, 0] @ model.head_vd.T, axis=-1), cache), token_b

  first_b = jnp.argmax(hidden_bpd[:, -1] @ model.head_vd.T, axis=-1)
  _, tokens_tb = jax.lax.scan(step, (first_b, cache), p + jnp.arange(new))
  return tokens_tb.T


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(case, tmp_path, write_checkpoint):
  import torch
  from transformers import AutoModelForCausalLM

  family, fields = CASES[case]
  folder = write_checkpoint(tmp_path, family, **fields)
  if "sharded" in case:
    assert len(list(folder.glob("model-*.safetensors"))) > 2
  tokens = np.random.default_rng(0).integers(0, 97, (2, 48))
  model = models.load(folder, dtype=jnp.float32)
  np.testing.assert_allclose(models.logits(model, tokens), reference_logits(folder, tokens), atol=1e-4, rtol=0)

  reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  prompt = torch.tensor(tokens[:, :8])
  expected = reference.generate(
    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0
  )
  np.testing.assert_array_equal(greedy(model, tokens[:, :8], 64), expected[:, 8:].numpy())


@pytest.mark.parametrize("rope", [LLAMA3, YARN_FULL, None], ids=["llama3", "yarn", "default"])
def test_both_spellings_of_rope_mean_the_same(rope, tmp_path, write_checkpoint, edit_config):
  new = dict(rope or {"rope_type": "default"}, rope_theta=3e4)
  folder = write_checkpoint(tmp_path, "llama", rope_parameters=new)
  read = models.read_architecture(folder)
  edit_config(folder, rope_parameters=None, rope_theta=3e4, rope_scaling=rope)
  assert "rope_parameters" not in json.loads((folder / "config.json").read_text())
  assert models.read_architecture(folder) == read
  if rope:  # before transformers 4.43 the kind was called `type`
    edit_config(folder, rope_scaling={("type" if k == "rope_type" else k): v for k, v in rope.items()})
    assert models.read_architecture(folder) == read
  tokens = np.arange(40)[None] % 97
  logits = models.logits(models.load(folder, dtype=jnp.float32), tokens)
  np.testing.assert_allclose(logits, reference_logits(folder, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_load_exactly(dtype, tmp_path, write_checkpoint):
  folder = write_checkpoint(tmp_path, "qwen2", dtype=dtype)
  tokens = np.arange(40)[None] % 97
  model = models.load(folder, dtype=jnp.float32)
  np.testing.assert_allclose(models.logits(model, tokens), reference_logits(folder, tokens), atol=1e-4, rtol=0)

  narrow = models.load(folder, dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
  jax.tree.map(np.testing.assert_array_equal, narrow.params, model.astype(jnp.bfloat16).params)
  assert models.logits(narrow, tokens).dtype == jnp.float32
