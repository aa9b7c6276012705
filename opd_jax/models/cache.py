"""Keys and values of the positions already seen: one stacked array each, for the whole model.

              slots:   0 ........ P-1 | P ................ P+bucket-1
    row of the cache:  left-padded    | one slot per decoded token, the same slot for all rows
                       prompt         |

The arrays are carried through the layer scan and updated in place at (layer, slot). As inputs and outputs of the
scan they would be copied whole at every decoded token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from opd_jax.distributed import constrain
from opd_jax.models.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
  """Keys (rotated) and values, each [L, B, S, K, H]."""

  keys_lbskh: jax.Array
  values_lbskh: jax.Array

  @classmethod
  def empty(cls, config: Architecture, batch: int, width: int, dtype) -> "Cache":
    """Zeros for `batch` rows of `width` slots. Zeros, not garbage: a masked slot still enters 0 * value."""
    shape = (config.layers, batch, width, config.kv_heads, config.head_dim)
    return cls(_placed(jnp.zeros(shape, dtype)), _placed(jnp.zeros(shape, dtype)))

  def write(self, layer: jax.Array, start: jax.Array | int, key_btkh: jax.Array, value_btkh: jax.Array) -> "Cache":
    """The cache with T new keys and values in slots [start, start + T) of one layer."""
    at = (layer, 0, start, 0, 0)
    return Cache(
      _placed(jax.lax.dynamic_update_slice(self.keys_lbskh, key_btkh[None].astype(self.keys_lbskh.dtype), at)),
      _placed(jax.lax.dynamic_update_slice(self.values_lbskh, value_btkh[None].astype(self.values_lbskh.dtype), at)),
    )

  def read(self, layer: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of one layer's first `slots` slots, each [B, S, K, H]."""
    _, batch, _, heads, width = self.keys_lbskh.shape
    at, size = (layer, 0, 0, 0, 0), (1, batch, slots, heads, width)
    return (
      jax.lax.dynamic_slice(self.keys_lbskh, at, size)[0],
      jax.lax.dynamic_slice(self.values_lbskh, at, size)[0],
    )


def _placed(array_lbskh: jax.Array) -> jax.Array:
  return constrain(array_lbskh, "layers", "batch", "length", "kv_heads", "head_dim")
