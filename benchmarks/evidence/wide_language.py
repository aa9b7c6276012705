"""A language of 36 tokens in which any may follow any, by falling chance: what is on a support, and what is left off.

after token c     rank 1    2    3    4   ...  36         ranks are dealt anew for every c
teacher           .43  .15  .08  .05  ...  .002
student           half of the time by another deal
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.evidence.tiny_pairs import Texts, log_probs, speaker
from opd_jax.models import Model
from opd_jax.rollout import Sampling, sample_completions

V, P, S = 36, 2, 16  # ids, prompt, completion: there is no end of sequence
TOP = 8  # the teacher's likeliest, whose mass is watched
_FALL = 1.5  # exponent of the ranks' weights
_TEXTS = 8192
_WATCHED_STEP = 1 << 20  # of the random keys: one that no training reaches


def language(generator: np.random.Generator) -> np.ndarray:
  """[V, V] probabilities of the next token after each."""
  weights = np.arange(1, V + 1) ** -_FALL
  table = np.empty((V, V))
  for row in table:
    row[generator.permutation(V)] = weights / weights.sum()
  return table


def texts(table: np.ndarray, generator: np.random.Generator, rows: int) -> Texts:
  tokens = np.empty((rows, P + S), np.int32)
  tokens[:, :P] = prompts(generator, rows)
  reaches = table.cumsum(axis=1)
  for t in range(P, P + S):
    tokens[:, t] = (reaches[tokens[:, t - 1]] < generator.random((rows, 1))).sum(axis=1).clip(max=V - 1)
  return Texts(tokens[:, :P], tokens[:, P:], np.ones((rows, S), bool))


def prompts(generator: np.random.Generator, rows: int) -> np.ndarray:
  return generator.integers(V, size=(rows, P)).astype(np.int32)


def make_pair(seed: int, steps: int) -> tuple[Model, Model]:
  """Student and teacher of a seed, after `steps` of pre-training."""
  generator = np.random.default_rng(seed)
  right, other = language(generator), language(generator)
  tables = (right + other) / 2, right
  student, teacher = (speaker(V, texts(table, generator, _TEXTS), generator, steps=steps) for table in tables)
  return student, teacher


@jax.jit
def look(student: Model, teacher: Model, prompts_bp: jax.Array) -> dict[str, jax.Array]:
  """Means over what the student writes: KL over all ids, its mass on the teacher's top 8, log q of what was written."""
  whole = jnp.ones(prompts_bp.shape, bool)
  numbers = jnp.int32(S), jnp.uint32(0), jnp.uint32(_WATCHED_STEP), jnp.arange(len(prompts_bp), dtype=jnp.uint32)
  static = {"bucket": S, "sampling": Sampling(1.0), "eos_ids": (), "vocab_size": V}
  written = sample_completions(student, prompts_bp, whole, *numbers, **static)
  tokens_bs, mask_bs = written.completions_bs, written.completion_mask_bs
  log_p, log_q = (log_probs(model, prompts_bp, tokens_bs, mask_bs) for model in (student, teacher))
  best_bsk = jax.lax.top_k(log_q, TOP)[1]
  return {
    "kl": (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean(),
    "mass": jnp.exp(jnp.take_along_axis(log_p, best_bsk, axis=-1)).sum(-1).mean(),
    "teacher_logprob": jnp.take_along_axis(log_q, tokens_bs[..., None], axis=-1).mean(),
  }
