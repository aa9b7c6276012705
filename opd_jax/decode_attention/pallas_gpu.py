"""Decode attention as a Pallas kernel for GPUs (Triton): a row's slots are read once, where they lie in the cache.

    one program a (row, key-value head, share of the row's blocks)

    slots of a row    . . . x x x x x | x x x x x x x x | x x x x x x x x | x x . . . . . .
                      share 0: two blocks               | share 1: two blocks

Each keeps a running softmax over its blocks and writes its unnormalised sum; XLA puts the shares together. There is
more than one share only where rows and heads are too few for the GPU. XLA's own form copies the slots that it attends
out of the stack before each of its two products, and so moves them three times.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from opd_jax.decode_attention.blocks import bounds
from opd_jax.decode_attention.reference import MASKED

_BLOCK = 64
_QUERIES = 16  # of a product, at least
_PROGRAMS = 264  # two for each of an H200's multiprocessors


def attend(query_bkgh, keys_lbkhs, values_lbksh, layer, seen_bs, *, interpret: bool = False) -> jax.Array:
  """[B, K, G, H] in the values' dtype; arguments as `api.attend` has them.

  Args:
    interpret: True runs the kernel's interpreter, on any machine.
  """
  rows, k, g, h = query_bkgh.shape
  slots = values_lbksh.shape[3]
  blocks = pl.cdiv(slots, _BLOCK)
  seen_bs = jnp.pad(seen_bs, ((0, 0), (0, blocks * _BLOCK - seen_bs.shape[1])))
  first_b, last_b = bounds(seen_bs, _BLOCK)
  shares = max(1, min(blocks, _PROGRAMS // (rows * k)))
  # A product has a power of two of queries.
  queries = max(_QUERIES, pl.next_power_of_2(g))
  query_bkgh = jnp.pad(query_bkgh, ((0, 0), (0, 0), (0, queries - g), (0, 0)))

  def kernel(layer, first_b, last_b, query, keys, values, seen, weighted, largest, total):
    row, head, share = (pl.program_id(axis) for axis in range(3))
    layer, first, last = (plgpu.load(ref.at[i]) for ref, i in ((layer, jnp.int32(0)), (first_b, row), (last_b, row)))
    query_gh = plgpu.load(query.at[row, head])

    def load(array, block, axis: int):
      """A block of keys or values, its slots on `axis`; zeros past the array."""
      slot_s = pl.ds(block * _BLOCK, _BLOCK)
      at = array.at[(layer, row, head, *((slot_s, slice(None)) if axis == 0 else (slice(None), slot_s)))]
      if slots % _BLOCK == 0:
        return plgpu.load(at)
      inside = block * _BLOCK + jnp.arange(_BLOCK) < slots
      return plgpu.load(at, mask=lax.broadcast_in_dim(inside, at.shape, (axis,)), other=0.0)

    def add_block(block, sums):
      before, total_g, weighted_gh = sums
      value_sh, seen_s = load(values, block, 0), plgpu.load(seen.at[row, pl.ds(block * _BLOCK, _BLOCK)])
      scores_gs = plgpu.dot(query_gh, load(keys, block, 1)) * h**-0.5
      scores_gs = jnp.where(seen_s[None, :] > 0, scores_gs, MASKED)
      now = jnp.maximum(before, jnp.max(scores_gs, axis=1))
      weights_gs, shrink = jnp.exp(scores_gs - now[:, None]), jnp.exp(before - now)
      share_gh = plgpu.dot(weights_gs.astype(value_sh.dtype), value_sh)
      return now, shrink * total_g + jnp.sum(weights_gs, axis=1), shrink[:, None] * weighted_gh + share_gh

    each = pl.cdiv(last + 1 - first, shares)
    start = first + share * each
    nothing = [
      jnp.full(shape, value, jnp.float32) for shape, value in ((queries, MASKED), (queries, 0), ((queries, h), 0))
    ]
    sums = lax.fori_loop(start, jnp.minimum(start + each, last + 1), add_block, tuple(nothing))
    for output, value in zip((largest, total, weighted), sums):
      plgpu.store(output.at[share, row, head], value)

  shape = (shares, rows, k, queries)
  weighted, largest, total = pl.pallas_call(
    kernel,
    grid=(rows, k, shares),
    out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, h), shape, shape)],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    interpret=interpret,
    name="decode_attention",
  )(layer.reshape(1), first_b, last_b, query_bkgh, keys_lbkhs, values_lbksh, seen_bs.astype(jnp.int32))
  # A share without a block has the smallest maximum and sums of 0.
  shrink = jnp.exp(largest - largest.max(axis=0))
  mixed_bkgh = (shrink[..., None] * weighted).sum(axis=0) / (shrink * total).sum(axis=0)[..., None]
  return mixed_bkgh[:, :, :g].astype(values_lbksh.dtype)
