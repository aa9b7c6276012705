"""Which blocks of slots a row has to read."""

import jax
import jax.numpy as jnp


def bounds(seen_bs: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
  """The blocks of each row's first and last slot that is seen, int32 [B] each; 0 and 0 of a row without any."""
  any_bn = seen_bs.reshape(len(seen_bs), -1, block).any(axis=2)
  first_b, last_b = jnp.argmax(any_bn, axis=1), any_bn.shape[1] - 1 - jnp.argmax(any_bn[:, ::-1], axis=1)
  return first_b.astype(jnp.int32), jnp.where(any_bn.any(axis=1), last_b, 0).astype(jnp.int32)
