"""Weights and prompts that all peers read: a random student of 11.5 million parameters, a teacher of 35.7 million.

Initialised with a standard deviation of 0.08 instead of 0.02: with 0.02 a tied random model gives every next token
nearly the same probability and copies its last one greedily, and equal tokens would prove little.
"""

import json
from pathlib import Path

import jax
import numpy as np
from meter import answer, read_job
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_jax.models import Architecture, initialize, save

_VOCABULARY, _PROMPTS, _PROMPT = 32_768, 512, 32
_SIZES = {  # layers, width, heads, kv_heads, mlp
  "student": (4, 256, 4, 2, 768),
  "teacher": (6, 512, 8, 4, 1536),
}


def architecture(layers: int, width: int, heads: int, kv_heads: int, mlp: int) -> Architecture:
  config = {
    "model_type": "qwen3",
    "vocab_size": _VOCABULARY,
    "hidden_size": width,
    "intermediate_size": mlp,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
    "rope_theta": 1_000_000.0,  # Tunix takes this value whatever config.json says
    "tie_word_embeddings": True,
    "eos_token_id": None,  # nothing ends a completion: all have the same length
  }
  return Architecture.from_config(config, "the peers' pair")


def save_tokenizer(folder: Path) -> None:
  """A tokenizer of words `t0 t1 ...` for peers that take text. Its end of sequence is a word like any other."""
  tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(_VOCABULARY)}, unk_token="t0"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0", pad_token="t0").save_pretrained(folder)


def main() -> None:
  folder = Path(read_job()["folder"])
  parameters = {}
  for seed, (name, size) in enumerate(_SIZES.items()):
    model = initialize(architecture(*size), jax.random.key(seed), "float32")
    parameters[name] = sum(x.size for x in jax.tree.leaves(model.params))
    save(model, folder / name)
    save_tokenizer(folder / name)
  prompts = np.random.default_rng(0).integers(1, _VOCABULARY, (_PROMPTS, _PROMPT)).tolist()
  (folder / "prompts.json").write_text(json.dumps(prompts))
  answer(["jax"], parameters=parameters)


if __name__ == "__main__":
  main()
