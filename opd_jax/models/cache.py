"""Keys and values of the positions already seen: one stacked array each, for the whole model.

              slots:   0 ........ P-2  | P-1 ............... P+bucket-2
    row of the cache:  left-padded     | one slot per decode step, the same slot for all rows
                       prompt but one  |

The arrays are carried through the layer scan and updated in place at (layer, slot). As inputs and outputs of the
scan they would be copied whole at every decoded token. They lie as a decode step's two products read them: keys with
the slots last (scores of many slots at once), values with the slots before the head's width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from opd_jax.decode_attention import attend
from opd_jax.distributed import constrain
from opd_jax.models.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
  """Keys (rotated) [L, B, K, H, S] and values [L, B, K, S, H]."""

  keys_lbkhs: jax.Array
  values_lbksh: jax.Array

  @classmethod
  def empty(cls, config: Architecture, batch: int, width: int, dtype) -> "Cache":
    """Zeros for `batch` rows of `width` slots. Zeros, not garbage: a masked slot still enters 0 * value."""
    row = (config.layers, batch, config.kv_heads)
    keys_lbkhs = jnp.zeros((*row, config.head_dim, width), dtype)
    return cls(_keys(keys_lbkhs), _values(jnp.zeros((*row, width, config.head_dim), dtype)))

  @property
  def slots(self) -> int:
    return self.values_lbksh.shape[3]

  def fork(self, samples: int, room: int) -> "Cache":
    """Each row `samples` times, neighbours, with `room` empty slots behind those that there are."""

    def widen(array: jax.Array, axis: int) -> jax.Array:
      padding = [(0, room if i == axis else 0) for i in range(array.ndim)]
      return jnp.pad(jnp.repeat(array, samples, axis=1), padding)

    return Cache(_keys(widen(self.keys_lbkhs, 4)), _values(widen(self.values_lbksh, 3)))

  def map_rows(self, pick: Callable[[jax.Array], jax.Array]) -> "Cache":
    """The cache of the rows that `pick` makes of an array with the rows first."""
    return Cache(_keys(jax.vmap(pick)(self.keys_lbkhs)), _values(jax.vmap(pick)(self.values_lbksh)))

  def write(self, layer: jax.Array, start: jax.Array | int, key_btkh: jax.Array, value_btkh: jax.Array) -> "Cache":
    """The cache with T new keys and values in slots [start, start + T) of one layer."""
    keys, values, update = self.keys_lbkhs, self.values_lbksh, jax.lax.dynamic_update_slice
    key_bkht, value_bkth = key_btkh.transpose(0, 2, 3, 1), value_btkh.transpose(0, 2, 1, 3)
    return Cache(
      _keys(update(keys, key_bkht[None].astype(keys.dtype), (layer, 0, 0, 0, start))),
      _values(update(values, value_bkth[None].astype(values.dtype), (layer, 0, 0, start, 0))),
    )

  def attend(self, layer: jax.Array, query_btnh: jax.Array, keys_bs: jax.Array, filled, stages=()) -> jax.Array:
    """[B, T, N, H]: `decode_attention.attend` of one layer."""
    return attend(query_btnh, self.keys_lbkhs, self.values_lbksh, layer, keys_bs, filled, stages=stages)


def _keys(array_lbkhs: jax.Array) -> jax.Array:
  return constrain(array_lbkhs, "layers", "batch", "kv_heads", "head_dim", "length")


def _values(array_lbksh: jax.Array) -> jax.Array:
  return constrain(array_lbksh, "layers", "batch", "kv_heads", "length", "head_dim")
