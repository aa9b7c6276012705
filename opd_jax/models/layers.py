"""The blocks of the decoder, and the one place where each parameter is declared.

A declaration names the shape, the logical axes, the initialiser and the checkpoint key; `parameters.parameter_table`
reads them back, and random initialisation, shardings, loader and saver follow from that table. Weights keep the
[out, in] orientation of Hugging Face checkpoints, with the head axis cut out of the rows or columns:

    q_proj.weight  [N*H, D]  ->  query_nhd  [N, H, D]        o_proj.weight  [D, N*H]  ->  output_dnh  [D, N, H]

Letters: B batch, T new positions, S key slots, D hidden width, N query heads, K key-value heads, G = N / K, H head
width, F MLP width, V vocabulary, L layers. Matmuls run in the parameters' dtype; norms, rotation and softmax in
float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from opd_jax.distributed import constrain
from opd_jax.models.architecture import Architecture
from opd_jax.models.rope import rotate


def _declare(shape: tuple[int, ...], axes: tuple[str | None, ...], key: str, initializer) -> nnx.Param:
  """A parameter without a value: its shape, and the metadata from which everything else about it follows."""
  return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, key=key, initializer=initializer)


def _weight(shape, axes, key, config: Architecture) -> nnx.Param:
  return _declare(shape, axes, f"{key}.weight", jax.nn.initializers.normal(config.initializer_range))


def _bias(shape, axes, key) -> nnx.Param:
  return _declare(shape, axes, f"{key}.bias", jax.nn.initializers.zeros)


class RMSNorm(nnx.Module):
  """Root-mean-square norm over the last axis, in float32."""

  def __init__(self, width: int, key: str, epsilon: float):
    self.epsilon = epsilon
    # Whole on every device: a scale split over `fsdp` would pull the residual stream into that split.
    self.scale = _declare((width,), (None,), f"{key}.weight", jax.nn.initializers.ones)

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
    return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention. Projection and attention are two calls, so that a cache can sit between them."""

  def __init__(self, config: Architecture):
    n, k, h, d = config.heads, config.kv_heads, config.head_dim, config.hidden_size
    self.query_nhd = _weight((n, h, d), ("heads", "head_dim", "embed"), "self_attn.q_proj", config)
    self.key_khd = _weight((k, h, d), ("kv_heads", "head_dim", "embed"), "self_attn.k_proj", config)
    self.value_khd = _weight((k, h, d), ("kv_heads", "head_dim", "embed"), "self_attn.v_proj", config)
    self.output_dnh = _weight((d, n, h), ("embed", "heads", "head_dim"), "self_attn.o_proj", config)
    if config.qkv_bias:
      self.query_bias_nh = _bias((n, h), ("heads", "head_dim"), "self_attn.q_proj")
      self.key_bias_kh = _bias((k, h), ("kv_heads", "head_dim"), "self_attn.k_proj")
      self.value_bias_kh = _bias((k, h), ("kv_heads", "head_dim"), "self_attn.v_proj")
    if config.output_bias:
      self.output_bias_d = _bias((d,), (None,), "self_attn.o_proj")
    if config.qk_norm:
      self.query_norm = RMSNorm(h, "self_attn.q_norm", config.rms_epsilon)
      self.key_norm = RMSNorm(h, "self_attn.k_norm", config.rms_epsilon)
    self.config = config

  def project(self, x_btd: jax.Array, cos_bth: jax.Array, sin_bth: jax.Array):
    """Queries [B, T, N, H] and keys [B, T, K, H], normed and rotated, and values [B, T, K, H]."""
    query, key, value = (_by_head(x_btd, w[...]) for w in (self.query_nhd, self.key_khd, self.value_khd))
    if self.config.qkv_bias:
      query, key = query + self.query_bias_nh[...], key + self.key_bias_kh[...]
      value = value + self.value_bias_kh[...]
    if self.config.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    query = constrain(rotate(query, cos_bth, sin_bth), "batch", "length", "heads", "head_dim")
    key = constrain(rotate(key, cos_bth, sin_bth), "batch", "length", "kv_heads", "head_dim")
    return query, key, constrain(value, "batch", "length", "kv_heads", "head_dim")

  def merge(self, mixed_btnh: jax.Array) -> jax.Array:
    """[B, T, D]: what the heads read, projected back."""
    out_btd = jnp.einsum("btnh,dnh->btd", mixed_btnh, self.output_dnh[...])
    return out_btd + self.output_bias_d[...] if self.config.output_bias else out_btd


def _by_head(x_btd: jax.Array, weight_nhd: jax.Array) -> jax.Array:
  """[B, T, N, H]. As one matrix [N*H, D]: weights with two free axes are transposed by XLA at every call on a CPU."""
  n, h, d = weight_nhd.shape
  return jnp.einsum("btd,ed->bte", x_btd, weight_nhd.reshape(n * h, d)).reshape(*x_btd.shape[:2], n, h)


class MLP(nnx.Module):
  """The gated feed-forward block: down(silu(gate(x)) * up(x))."""

  def __init__(self, config: Architecture):
    f, d = config.mlp_size, config.hidden_size
    self.gate_fd = _weight((f, d), ("mlp", "embed"), "mlp.gate_proj", config)
    self.up_fd = _weight((f, d), ("mlp", "embed"), "mlp.up_proj", config)
    self.down_df = _weight((d, f), ("embed", "mlp"), "mlp.down_proj", config)

  def __call__(self, x_btd: jax.Array) -> jax.Array:
    gate_btf = jnp.einsum("btd,fd->btf", x_btd, self.gate_fd[...])
    up_btf = jnp.einsum("btd,fd->btf", x_btd, self.up_fd[...])
    inner_btf = constrain(jax.nn.silu(gate_btf) * up_btf, "batch", "length", "mlp")
    return jnp.einsum("btf,df->btd", inner_btf, self.down_df[...])


class Layer(nnx.Module):
  """One pre-norm block: attention and MLP, each with its norm and its residual."""

  def __init__(self, config: Architecture):
    d, epsilon = config.hidden_size, config.rms_epsilon
    self.attention_norm = RMSNorm(d, "input_layernorm", epsilon)
    self.attention = Attention(config)
    self.mlp_norm = RMSNorm(d, "post_attention_layernorm", epsilon)
    self.mlp = MLP(config)

  def queries_keys_values(self, hidden_btd: jax.Array, cos_bth: jax.Array, sin_bth: jax.Array):
    """First half of the block, up to where a cache may stand between new keys and attended keys."""
    return self.attention.project(self.attention_norm(hidden_btd), cos_bth, sin_bth)

  def __call__(self, hidden_btd: jax.Array, mixed_btnh: jax.Array) -> jax.Array:
    """Second half: [B, T, D] after the heads have read, and after the MLP."""
    hidden_btd = constrain(hidden_btd + self.attention.merge(mixed_btnh), "batch", "length", None)
    return constrain(hidden_btd + self.mlp(self.mlp_norm(hidden_btd)), "batch", "length", None)


class Decoder(nnx.Module):
  """The whole model. `layers` declares one layer; its arrays carry a leading [L] axis and are scanned."""

  def __init__(self, config: Architecture):
    v, d = config.vocab_size, config.hidden_size
    self.embed_vd = _weight((v, d), ("vocab", "embed"), "model.embed_tokens", config)
    self.layers = Layer(config)
    self.norm = RMSNorm(d, "model.norm", config.rms_epsilon)
    if not config.tied_head:
      self.head_vd = _weight((v, d), ("vocab", "embed"), "lm_head", config)
