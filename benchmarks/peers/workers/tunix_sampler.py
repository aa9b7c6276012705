"""Tunix's vanilla sampler: the token buffer is as long as the horizon, so every new horizon is compiled.

A sampler per horizon, with a cache no wider than that horizon needs: its fastest setting.
"""

import functools

import jax.numpy as jnp
from meter import answer, read_job, time_generation
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params


class Ids:
  """A tokenizer whose text is ids with blanks between; Tunix takes any object with these methods."""

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> None:
    return None

  def eos_id(self) -> int:
    return -1

  def pad_id(self) -> int:
    return -1


def main() -> None:
  job = read_job()
  c = job["architecture"]
  config = qwen3.ModelConfig(
    num_layers=c["num_hidden_layers"],
    vocab_size=c["vocab_size"],
    embed_dim=c["hidden_size"],
    hidden_dim=c["intermediate_size"],
    num_heads=c["num_attention_heads"],
    head_dim=c["head_dim"],
    num_kv_heads=c["num_key_value_heads"],
    norm_eps=c["rms_norm_eps"],
    rope_theta=c["rope_theta"],
    use_tied_embedding=c["tie_word_embeddings"],
  )
  model = params.create_model_from_safe_tensors(job["model"], config, dtype=jnp.float32)
  texts = [" ".join(map(str, row)) for row in job["prompts"]]
  width = len(job["prompts"][0])

  @functools.cache
  def sampler(horizon: int) -> Sampler:
    return Sampler(model, Ids(), CacheConfig(width + horizon, config.num_layers, config.num_kv_heads, config.head_dim))

  def generate(horizon: int, greedy: bool):
    how = {} if greedy else {"temperature": 1.0, "top_p": 1.0, "seed": 0}
    return sampler(horizon)(texts, max_generation_steps=horizon, max_prompt_length=width, eos_tokens=[-1], **how).tokens

  answer(["google-tunix", "jax", "flax"], modes=time_generation(generate, job))


if __name__ == "__main__":
  main()
