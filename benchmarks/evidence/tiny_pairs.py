"""Small models that speak a constructed language: what a failure needs, and nothing else, in seconds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from opd_jax.distributed import make_mesh
from opd_jax.models import Architecture, Model, initialize, specs
from opd_jax.scoring import score


@dataclasses.dataclass(frozen=True)
class Texts:
  """Examples of a language.

  Attributes:
    prompts_np: int32 [N, P].
    completions_ns: int32 [N, S].
    mask_ns: bool [N, S], true on a prefix of each row.
  """

  prompts_np: np.ndarray
  completions_ns: np.ndarray
  mask_ns: np.ndarray


def one_device() -> Mesh:
  return make_mesh((1, 1, 1), jax.devices()[:1])


def architecture(vocab_size: int) -> Architecture:
  """Two layers of width 32."""
  config = {
    "model_type": "qwen3",
    "vocab_size": vocab_size,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
  }
  return Architecture.from_config(config, "a tiny pair")


def speaker(
  vocab_size: int,
  texts: Texts,
  generator: np.random.Generator,
  *,
  steps: int,
  rows: int = 64,
  learning_rate: float = 1e-2,
) -> Model:
  """A float32 model on `one_device()` that has learned `texts` by next-token training, `rows` of them a step."""
  model = initialize(architecture(vocab_size), jax.random.key(generator.integers(2**31)), "float32")
  chosen_kr = generator.integers(len(texts.prompts_np), size=(steps, rows))
  given = texts.prompts_np, texts.completions_ns, texts.mask_ns
  params, mesh = _fit(model, *given, chosen_kr, learning_rate=learning_rate), one_device()
  placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs(model.config, mesh))
  return dataclasses.replace(model, params=placed)


@functools.partial(jax.jit, static_argnames="learning_rate")
def _fit(model: Model, prompts_np, completions_ns, mask_ns, chosen_kr, *, learning_rate: float):
  """Parameters after one step of Adam for each row of `chosen_kr`, the rate going down to 0 along a cosine."""
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, len(chosen_kr)))

  def step(carry, chosen_r):
    params, state = carry
    prompts, completions, mask = prompts_np[chosen_r], completions_ns[chosen_r], mask_ns[chosen_r]

    def loss(params):
      candidate = dataclasses.replace(model, params=params)
      hidden = score(candidate, prompts, jnp.ones(prompts.shape, bool), completions, mask)
      each = optax.softmax_cross_entropy_with_integer_labels(hidden @ candidate.head_vd.T, completions)
      return (each * mask).sum() / mask.sum()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (model.params, optimizer.init(model.params)), chosen_kr)[0][0]


def log_probs(model: Model, prompts_bp, completions_bs, mask_bs) -> jax.Array:
  """[B, S, V] of the next token at each place of the completions: dense, which a tiny vocabulary allows."""
  hidden_bsd = score(model, prompts_bp, jnp.ones(prompts_bp.shape, bool), completions_bs, mask_bs)
  return jax.nn.log_softmax(hidden_bsd @ model.head_vd.T)
