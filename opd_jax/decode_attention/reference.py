"""Attention over a stacked cache in plain XLA, over a number of slots that grows in stages.

    S = 2080, stages (288, 544, 1056)     a token written to slot 300 attends the first 544 slots

Each stage is a branch of the program: a slice's width is static.
"""

import jax
import jax.numpy as jnp

# Scores of slots that may not be attended: finite, so that a row without any slot gets a uniform average, not NaN.
MASKED = -1e30


def attend(query_btnh, keys_lbkhs, values_lbksh, layer, keys_bs, filled, stages: tuple[int, ...]) -> jax.Array:
  """[B, T, N, H]: the first of `stages` slots that hold `filled` are attended; all that the mask has are the last."""
  widths = (*(stage for stage in sorted(stages) if stage < keys_bs.shape[1]), keys_bs.shape[1])

  def branch(width: int):
    return lambda *arrays: attend_first(*arrays, layer, keys_bs[:, :width])

  stage = jnp.searchsorted(jnp.asarray(widths), filled, method="compare_all")
  return jax.lax.switch(stage, [branch(width) for width in widths], query_btnh, keys_lbkhs, values_lbksh)


def attend_first(query_btnh, keys_lbkhs, values_lbksh, layer, keys_bs) -> jax.Array:
  """[B, T, N, H]: the first S slots of one layer, where the T queries stand last and see none after themselves."""
  b, t, n, h = query_btnh.shape
  s, k = keys_bs.shape[1], values_lbksh.shape[2]
  key_bkhs = jax.lax.dynamic_slice(keys_lbkhs, (layer, 0, 0, 0, 0), (1, b, k, h, s))[0]
  value_bksh = jax.lax.dynamic_slice(values_lbksh, (layer, 0, 0, 0, 0), (1, b, k, s, h))[0]
  seen_bts = keys_bs[:, None, :]
  if t > 1:
    seen_bts &= jnp.arange(s) <= s - t + jnp.arange(t)[:, None]
  # As matrices [T*G, H] x [H, S] x [S, H] a row and key-value head: no key or value is moved.
  query_bkih = query_btnh.reshape(b, t, k, n // k, h).swapaxes(1, 2).reshape(b, k, -1, h)
  scores_bkis = jax.lax.dot_general(
    query_bkih, key_bkhs, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
  )
  seen_bis = jnp.repeat(seen_bts, n // k, axis=1)
  scores_bkis = jnp.where(seen_bis[:, None], scores_bkis * h**-0.5, MASKED)
  weights_bkis = jax.nn.softmax(scores_bkis, axis=-1).astype(value_bksh.dtype)
  mixed_bkih = jax.lax.dot_general(weights_bkis, value_bksh, (((3,), (2,)), ((0, 1), (0, 1))))
  return mixed_bkih.reshape(b, k, t, n // k, h).swapaxes(1, 2).reshape(b, t, n, h)
