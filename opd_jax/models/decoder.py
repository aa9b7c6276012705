"""The one model function: prefill, decode, and the scoring of student and teacher all go through `forward`.

    tokens_bt ─► embed ─► scan over L layers (carry: hidden_btd, cache) ─► norm ─► hidden_btd

It stops at the hidden states. The head is applied by whoever needs it (the sampler at one position, the divergence
in token chunks), so that no [B, T, V] array is made on the way.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opd_jax.distributed import constrain
from opd_jax.errors import InputError
from opd_jax.models.architecture import Architecture
from opd_jax.models.cache import Cache
from opd_jax.models.parameters import graph, random_parameters
from opd_jax.models.rope import angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
  """Parameters and what they mean. A pytree: jit and grad see the arrays, `config` is static.

  Attributes:
    params: nested dict of arrays, the paths of `parameters.parameter_table`.
    config: the architecture; hashable.
  """

  params: dict
  config: Architecture = field(metadata={"static": True})

  def astype(self, dtype) -> "Model":
    """The same model with every parameter in `dtype`."""
    return replace(self, params=jax.tree.map(lambda x: x.astype(dtype), self.params))

  @property
  def head_vd(self) -> jax.Array:
    """The output head, [V, D]: the embedding where the two are tied."""
    return self.params["embed_vd" if self.config.tied_head else "head_vd"]


def initialize(config: Architecture, key: jax.Array, dtype, mesh: jax.sharding.Mesh | None = None) -> Model:
  """A model with freshly drawn parameters in `dtype`, sharded over `mesh` or on the default device."""
  return Model(random_parameters(config, key, dtype, mesh), config)


def forward(
  model: Model,
  tokens_bt: jax.Array,
  positions_bt: jax.Array,
  mask_bts: jax.Array,
  cache: Cache | None = None,
  start: jax.Array | int = 0,
  *,
  remat: bool = False,
) -> tuple[jax.Array, Cache | None]:
  """Hidden states after the final norm, [B, T, D] in the parameters' dtype, and the cache with T more slots.

                 slot s = 0 .. S-1
    query t = 0  [ x . . . . . . ]
            1    [ x x . . . . . ]    x: mask_bts[b, t, s], query t of row b attends slot s
            2    [ x x x . . . . ]

  Without a cache S = T: the keys are the tokens' own. With one, the T new keys and values are first written to slots
  [start, start + T), then the first S slots are attended: prefill reads the prompt's slots only, decode all of them.

  Args:
    model: parameters [L, ...] and architecture.
    tokens_bt: ids, [B, T] integers.
    positions_bt: rotary position of every token, [B, T] integers; anything for padding.
    mask_bts: [B, T, S] bool. A row of it without any True gives finite output.
    cache: None, or one of at least S slots.
    start: first slot to write; may be traced.
    remat: recompute each layer in the backward pass instead of keeping its activations.

  Raises ValueError where the mask's shape does not fit.
  """
  width, slots = mask_bts.shape[2], tokens_bt.shape[1] if cache is None else cache.keys_lbskh.shape[2]
  if mask_bts.shape[:2] != tokens_bt.shape or width > slots or (cache is None and width < slots):
    raise ValueError(f"mask {mask_bts.shape} does not fit tokens {tokens_bt.shape} and {slots} key slots")
  config = model.config
  decoder = nnx.merge(graph(config)[0], model.params)
  layer_graph, layer_params = nnx.split(decoder.layers)
  cos_bth, sin_bth = angles(config.rope, config.head_dim, positions_bt)
  # Whole rows are looked up: with their width split too, the partitioner falls back to gathering the batch instead.
  embed_vd = constrain(decoder.embed_vd[...], "vocab", None)
  hidden_btd = constrain(embed_vd[constrain(tokens_bt, "batch", "length")], "batch", "length", None)

  def body(carry: tuple[jax.Array, Cache | None], scanned: tuple[jax.Array, nnx.State]):
    hidden_btd, cache = carry
    index, params = scanned
    layer = nnx.merge(layer_graph, params)
    query, key, value = layer.queries_keys_values(hidden_btd, cos_bth, sin_bth)
    if cache is not None:
      cache = cache.write(index, start, key, value)
      key, value = cache.read(index, width)
    return (layer(hidden_btd, query, key, value, mask_bts), cache), None

  # Inside a scan nothing can be merged across layers, so the barrier against it would only cost speed.
  body = jax.checkpoint(body, prevent_cse=False) if remat else body
  (hidden_btd, cache), _ = jax.lax.scan(body, (hidden_btd, cache), (jnp.arange(config.layers), layer_params))
  return decoder.norm(hidden_btd), cache


def logits(model: Model, tokens_bt) -> jax.Array:
  """[B, T, V] float32 at positions 0..T-1, causal and without padding: for inspection, not for training.

  Args:
    model: the model.
    tokens_bt: [B, T] ids; a NumPy array or nested lists will do.

  Raises InputError for rows of unequal length and for ids outside the vocabulary.
  """
  try:
    tokens_bt = np.asarray(tokens_bt)
  except ValueError:
    raise InputError("logits: the rows of tokens differ in length; pass one row at a time") from None
  if tokens_bt.ndim != 2 or not tokens_bt.size or not np.issubdtype(tokens_bt.dtype, np.integer):
    raise InputError(f"logits: tokens must be integers [batch, length], not {tokens_bt.dtype} {tokens_bt.shape}")
  if tokens_bt.min() < 0 or tokens_bt.max() >= model.config.vocab_size:
    raise InputError(f"logits: token ids must lie in 0..{model.config.vocab_size - 1}")
  return _logits(model, tokens_bt)


@jax.jit
def _logits(model: Model, tokens_bt: jax.Array) -> jax.Array:
  b, t = tokens_bt.shape
  mask_bts = jnp.broadcast_to(jnp.tri(t, dtype=bool), (b, t, t))
  hidden_btd, _ = forward(model, tokens_bt, jnp.broadcast_to(jnp.arange(t), (b, t)), mask_bts)
  return jnp.einsum("btd,vd->btv", hidden_btd, model.head_vd, preferred_element_type=jnp.float32)
