"""Decode attention as a Pallas kernel for TPUs: a row's slots are read once, in blocks, where they lie in the cache.

    slots of a row    . . . . . . x x | x x x x x x x x | x x x . . . . . | . . . . . . . .
                       left padding   |                 |   filled so far |   nothing yet
    blocks            read            | read            | read            | neither read nor computed

grid (row, block): the layer and each row's first block are scalars that the pipeline has before it fetches, so a block
[K, block, H] of keys comes straight out of the stacked array. The grid ends with the row of most blocks; a row of fewer
stays on its last one, which is not fetched again. All key-value heads of a block are worked on together, two matrix
products each ([G, H] x [block, H]^T, then x [block, H]), with a running softmax over the blocks.

Keys are read with the head's width last, as values are: a new key is then a row of a tile in memory, where it would be
a column of 128 tiles. The cache's axes stay as they are, and are swapped in front of the kernel: XLA lays the array out
for its one reader, through the loops, and the swap is no operation (aot_test looks).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from opd_jax.decode_attention.blocks import bounds
from opd_jax.decode_attention.reference import MASKED

_LANES = 128
# Of keys and values together: long enough to fetch that a step's own cost is small, short enough that few slots are
# read past the filled ones.
_BLOCK_BYTES = 1 << 20


def attend(
  query_bkgh: jax.Array,
  keys_lbkhs: jax.Array,
  values_lbksh: jax.Array,
  layer: jax.Array,
  seen_bs: jax.Array,
  *,
  interpret=False,
) -> jax.Array:
  """[B, K, G, H] in the values' dtype; arguments as `api.attend` has them, queries by key-value head.

  Args:
    interpret: False on a TPU; True or `pltpu.InterpretParams()` elsewhere.
  """
  rows, k, g, h = query_bkgh.shape
  slots = values_lbksh.shape[3]
  slot_bytes = 2 * k * h * values_lbksh.dtype.itemsize
  block = block_slots(slots, slot_bytes)
  blocks = pl.cdiv(slots, block)
  seen_bs = jnp.pad(seen_bs, ((0, 0), (0, blocks * block - seen_bs.shape[1])))
  first_b, last_b = bounds(seen_bs, block)

  def at(row, step, first_b, last_b):
    return jnp.minimum(first_b[row] + step, last_b[row])

  whole = pl.BlockSpec((None, k, g, h), lambda row, step, *_: (row, 0, 0, 0))
  cached = pl.BlockSpec(
    (None, None, k, block, h), lambda row, step, layer, *bounds: (layer[0], row, 0, at(row, step, *bounds), 0)
  )
  seen = pl.BlockSpec((None, 1, block), lambda row, step, layer, *bounds: (row, 0, at(row, step, *bounds)))
  run = pl.pallas_call(
    partial(_kernel, slots=slots),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(rows, jnp.max(last_b - first_b) + 1),
      in_specs=[whole, cached, cached, seen],
      out_specs=whole,
      scratch_shapes=[pltpu.VMEM((k, g, width), jnp.float32) for width in (_LANES, _LANES, h)],
    ),
    out_shape=jax.ShapeDtypeStruct(query_bkgh.shape, values_lbksh.dtype),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=4 * block * slot_bytes + (8 << 20)
    ),
    # Of all slots: how many are seen is not known when the program is compiled.
    cost_estimate=pl.CostEstimate(
      flops=4 * rows * k * g * slots * h,
      transcendentals=rows * k * g * slots,
      bytes_accessed=rows * slots * slot_bytes,
    ),
    interpret=interpret,
    name="decode_attention",
  )
  keys_lbksh, seen_b1s = keys_lbkhs.swapaxes(3, 4), seen_bs[:, None].astype(jnp.float32)
  return run(layer.reshape(1), first_b, last_b, query_bkgh, keys_lbksh, values_lbksh, seen_b1s)


def _kernel(layer, first_b, last_b, query, keys, values, seen, mixed, largest, total, weighted, *, slots: int):
  """One block of one row. `largest`, `total` (their one number a query in all lanes) and `weighted` go from block to
  block."""
  row, step, block = pl.program_id(0), pl.program_id(1), values.shape[1]

  @pl.when(step == 0)
  def _():
    largest[...] = jnp.full_like(largest, MASKED)
    total[...] = jnp.zeros_like(total)
    weighted[...] = jnp.zeros_like(weighted)

  at = first_b[row] + step

  @pl.when(at <= last_b[row])
  def _():
    value_ksh = values[...]
    if slots % block:
      # The last block reads past the array: anything, and 0 * NaN is NaN.
      inside = at * block + lax.broadcasted_iota(jnp.int32, value_ksh.shape, 1) < slots
      value_ksh = jnp.where(inside, value_ksh, 0)
    scores_kgs = _products(query[...], keys[...], 2) * query.shape[-1] ** -0.5
    scores_kgs = jnp.where(seen[...][None] > 0, scores_kgs, MASKED)
    before, now = largest[...], jnp.maximum(largest[...], jnp.max(scores_kgs, axis=2, keepdims=True))
    weights_kgs, shrink = jnp.exp(scores_kgs - now[..., :1]), jnp.exp(before - now)
    largest[...] = now
    total[...] = shrink * total[...] + jnp.sum(weights_kgs, axis=2, keepdims=True)
    share_kgh = _products(weights_kgs.astype(value_ksh.dtype), value_ksh, 1)
    weighted[...] = shrink[..., :1] * weighted[...] + share_kgh

  @pl.when(step == pl.num_programs(1) - 1)
  def _():
    mixed[...] = (weighted[...] / total[..., :1]).astype(mixed.dtype)


def _products(left, right, axis: int) -> jax.Array:
  """A matrix product for each key-value head, over the last axis of `left` and `axis` of `right`; float32."""
  return lax.dot_general(left, right, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def block_slots(slots: int, bytes_of_slot: int) -> int:
  """Slots of a block: a multiple of 128, or all of them."""
  return min(slots, max(1, _BLOCK_BYTES // bytes_of_slot // _LANES) * _LANES)
