"""The one model function: prefill, decode, and the scoring of student and teacher all go through `forward`.

    tokens_bt ─► embed ─► scan over L layers (carry: hidden_btd, cache) ─► norm ─► hidden_btd

It stops at the hidden states. The head is applied by whoever needs it (the sampler at one position, the divergence
in token chunks), so that no [B, T, V] array is made on the way.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx, traverse_util
from jax.sharding import PartitionSpec

from opd_jax.config import Lora
from opd_jax.distributed import constrain, mesh_of
from opd_jax.errors import InputError
from opd_jax.models.architecture import Architecture
from opd_jax.models.attention import attend
from opd_jax.models.cache import Cache
from opd_jax.models.lora import adapt, adapted_weights, factor_table, is_adapted
from opd_jax.models.parameters import graph, nested, parameter_table, random_parameters
from opd_jax.models.rope import angles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
  """Parameters and what they mean. A pytree: jit and grad see the arrays, `config` is static.

  Attributes:
    params: nested dict of arrays, the paths of `parameters.parameter_table`; layers' weights may be in int8 with their
      scales (`quantized.quantize`), or have factors beside them (`add_factors`).
    config: the architecture; hashable.
  """

  params: dict
  config: Architecture = field(metadata={"static": True})

  def astype(self, dtype) -> "Model":
    """The same model with every parameter in `dtype`; what is in int8 stays so, and is made into `dtype` when used, as
    is the sum of a weight and its float32 factors."""

    def cast(x):
      if is_adapted(x):
        return replace(x, weight=x.weight.astype(dtype))
      return x if _is_int8(x) else x.astype(dtype)

    return replace(self, params=jax.tree.map(cast, self.params, is_leaf=_is_compound))

  @property
  def trained(self) -> dict:
    """What an optimizer changes: the factors alone where there are any, else all of `params`."""
    adapted = adapted_weights(self.params)
    factors = {(*path, name): getattr(x, name) for path, x in adapted.items() for name in ("a", "b")}
    return nested(factors) if factors else self.params

  def with_trained(self, trained: dict) -> "Model":
    """The model with these in the place of `trained`."""
    scales = [x.scale for x in adapted_weights(self.params).values()]
    return replace(self, params=adapt(self.params, trained, scales[0]) if scales else trained)

  def merged(self, dtype) -> "Model":
    """The model without factors: their weights' sums in `dtype`, made layer after layer; the rest as it is."""
    adapted = adapted_weights(self.params)
    if not adapted:
      return self
    whole = jax.lax.map(lambda layer: {path: x.merged(dtype) for path, x in layer.items()}, adapted)
    return replace(self, params=nested(traverse_util.flatten_dict(self.params) | whole))

  @property
  def head_vd(self) -> jax.Array:
    """The output head, [V, D]: the embedding where the two are tied."""
    return self.params["embed_vd" if self.config.tied_head else "head_vd"]

  def split_head(self) -> jax.Array:
    """The output head split over the mesh's `tensor` axis, [W, D]; W > V where `tensor` does not divide V.

        V = 41, tensor = 4     rows 0 .. 10 | 11 .. 21 | 22 .. 32 | 33 .. 40 and 3 of zeros

    Products with rows past V mean nothing: whoever makes them masks them. Parameters and checkpoints keep V rows, so
    that they restore on any mesh; where V divides, or without a mesh, this is `head_vd`.
    """
    head_vd, mesh = self.head_vd, jax.sharding.get_abstract_mesh()
    missing = 0 if mesh.empty else -head_vd.shape[0] % mesh.shape["tensor"]
    if not missing:
      return head_vd
    # D stays split as it is stored: each device cuts its rows out of what it has, and only those are gathered.
    split = PartitionSpec("tensor", PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(jnp.pad(head_vd, ((0, missing), (0, 0))), split)


def initialize(config: Architecture, key: jax.Array, dtype, mesh: jax.sharding.Mesh | None = None) -> Model:
  """A model with freshly drawn parameters in `dtype`, sharded over `mesh` or on the default device."""
  return Model(random_parameters(parameter_table(config), key, dtype, mesh), config)


def add_factors(model: Model, lora: Lora, key: jax.Array) -> Model:
  """The model with freshly drawn float32 factors, on its mesh; what it computes stays the same, bit for bit.

  Raises InputError where the model has no such weights, or they cannot have that rank.
  """
  factors = random_parameters(factor_table(model.config, lora), key, jnp.float32, mesh_of(model.params))
  return replace(model, params=adapt(model.params, factors, lora.scale))


def forward(
  model: Model,
  tokens_bt: jax.Array,
  positions_bt: jax.Array,
  keys_bs: jax.Array,
  cache: Cache | None = None,
  start: jax.Array | int = 0,
  *,
  stages: tuple[int, ...] = (),
  remat: bool = False,
) -> tuple[jax.Array, Cache | None]:
  """Hidden states after the final norm, [B, T, D] in the parameters' dtype, and the cache with T more slots.

  Without a cache S = T: the keys are the tokens' own. With one, the T new keys and values are first written to slots
  [start, start + T), then the first S slots are attended: a prefill (S = T, from slot 0) reads its own keys, decode
  those slots up to its own or any number more. The T queries stand for the last T of the S slots and see none after
  themselves (`attention`), so slots that are not written yet are told by `keys_bs`. `stages` spares reading them
  (`decode_attention`).

  Args:
    model: parameters [L, ...] and architecture.
    tokens_bt: ids, [B, T] integers.
    positions_bt: rotary position of every token, [B, T] integers; anything for padding.
    keys_bs: [B, S] bool, true where a slot holds a token. A query that sees none gives finite output.
    cache: None, or one of at least S slots.
    start: first slot to write; may be traced.
    stages: numbers of slots, of which the first that holds those written, or S, is read where no kernel is.
    remat: recompute each layer in the backward pass instead of keeping its activations.

  Raises ValueError where the mask's shape does not fit.
  """
  (rows, t), width = tokens_bt.shape, keys_bs.shape[1]
  slots = t if cache is None else cache.slots
  if keys_bs.shape[0] != rows or not t <= width <= slots:
    raise ValueError(f"mask {keys_bs.shape} does not fit tokens {tokens_bt.shape} and {slots} key slots")
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
    layer = nnx.merge(layer_graph, _whole(params, hidden_btd.dtype))
    query, key, value = layer.queries_keys_values(hidden_btd, cos_bth, sin_bth)
    if cache is not None:
      cache = cache.write(index, start, key, value)
    if t == width:
      mixed_btnh = attend(query, key, value, keys_bs)
    else:
      mixed_btnh = cache.attend(index, query, keys_bs, start + t, stages)
    return (layer(hidden_btd, mixed_btnh), cache), None

  # Inside a scan nothing can be merged across layers, so the barrier against it would only cost speed.
  body = jax.checkpoint(body, prevent_cse=False) if remat else body
  (hidden_btd, cache), _ = jax.lax.scan(body, (hidden_btd, cache), (jnp.arange(config.layers), layer_params))
  return decoder.norm(hidden_btd), cache


def _is_int8(x) -> bool:
  return isinstance(x, qwix.QArray)


def _is_compound(x) -> bool:
  """Whether several arrays stand in one parameter's place."""
  return _is_int8(x) or is_adapted(x)


def _whole(params: nnx.State, dtype) -> nnx.State:
  """A layer's parameters, those in int8 multiplied out and those with factors merged."""

  def whole(x):
    if is_adapted(x):
      return x.merged(dtype)
    return qwix.dequantize(x).astype(dtype) if _is_int8(x) else x

  return jax.tree.map(whole, params, is_leaf=_is_compound)


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
  hidden_btd, _ = forward(model, tokens_bt, jnp.broadcast_to(jnp.arange(t), (b, t)), jnp.ones((b, t), bool))
  return jnp.einsum("btd,vd->btv", hidden_btd, model.head_vd, preferred_element_type=jnp.float32)
