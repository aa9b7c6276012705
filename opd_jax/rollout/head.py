"""The head as a decode step multiplies with it: [R, D] hidden states by [V, D] rows, R small.

On a TPU or GPU that is a plain product. On a CPU XLA packs the rows anew at every token, which costs more than the
product itself; written as a sum over blocks of 64 rows that lie transposed, nothing is left to pack:

    head_vd   [V, D]   ->   [V / 64, D, 64]   kept in an array of the first shape, as a program's shapes must not
                                              depend on the platform that it is lowered for
"""

import jax
import jax.numpy as jnp

_ROWS = 64
_WIDEST = 512  # of a block of this form that stays in a CPU's second-level cache; past it the product is slower


def pack_head(head_vd: jax.Array, rows: int) -> jax.Array:
  """`head_vd` laid out for `multiply_head` with hidden states of so many rows. Once, before the decode loop."""
  return _by_platform(_transpose_blocks, lambda head_vd: head_vd, rows, head_vd)


def multiply_head(hidden_rd: jax.Array, packed_vd: jax.Array) -> jax.Array:
  """Logits, float32 [R, V], of a head from `pack_head`."""
  return _by_platform(_sum_over_blocks, _product, hidden_rd.shape[0], packed_vd, hidden_rd)


def _by_platform(on_cpu, elsewhere, rows: int, head_vd: jax.Array, *more: jax.Array) -> jax.Array:
  (v, d), mesh = head_vd.shape, jax.sharding.get_abstract_mesh()
  whole = mesh.empty or mesh.size == 1
  if not whole or v % _ROWS or d > _WIDEST or rows == 1 or head_vd.dtype != jnp.float32:
    return elsewhere(head_vd, *more)
  return jax.lax.platform_dependent(head_vd, *more, cpu=on_cpu, default=elsewhere)


def _transpose_blocks(head_vd: jax.Array) -> jax.Array:
  v, d = head_vd.shape
  # Block by block: one transposition of the whole would be made by XLA's CPU compiler as two copies of the head.
  return jax.lax.map(jnp.transpose, head_vd.reshape(v // _ROWS, _ROWS, d)).reshape(v, d)


def _sum_over_blocks(packed_vd: jax.Array, hidden_rd: jax.Array) -> jax.Array:
  v, d = packed_vd.shape
  blocks_ndk = packed_vd.reshape(v // _ROWS, d, _ROWS)
  return (hidden_rd[:, None, :, None] * blocks_ndk).sum(axis=2).reshape(-1, v)


def _product(head_vd: jax.Array, hidden_rd: jax.Array) -> jax.Array:
  return jnp.einsum("rd,vd->rv", hidden_rd, head_vd, preferred_element_type=jnp.float32)
