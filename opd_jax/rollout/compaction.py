"""Rows that are done leave the batch: those that still write go on in a batch of half the rows, and at the end of it
all lie where they were.

    two devices     a b c d | e f g h      a step costs what its rows cost, done or not
    done              x   x |   x x x
                    a c     | e b          half the rows: each device keeps the first of its own, those that are done
                                           filling up, so that no key and no value travels

Shapes are static: every batch is a decode loop of its own in the program, and compiled with it.
"""

import jax
import jax.numpy as jnp

from opd_jax.distributed import parts


def smaller_batches(rows: int, compactions: int) -> tuple[int, ...]:
  """Rows that a device has in the batches after the first, each half of the one before; at least two.

  Args:
    rows: of the whole first batch.
    compactions: at most so many batches.
  """
  counts, count = [], rows // parts("batch", rows)
  while len(counts) < compactions and count > 2:
    count = -(-count // 2)
    counts.append(count)
  return tuple(counts)


def most_left(done_r: jax.Array) -> jax.Array:
  """How many rows still write on the device that has the most of them: int32 scalar."""
  return (~_by_device(done_r)).sum(axis=1, dtype=jnp.int32).max()


def choose(done_r: jax.Array, count: int) -> jax.Array:
  """[devices, count]: which of its own rows each device keeps, those that still write first."""
  return jnp.argsort(_by_device(done_r), axis=1, stable=True)[:, :count]


def take(array_r: jax.Array, kept_dk: jax.Array) -> jax.Array:
  """The kept rows of [R, ...], as [devices * count, ...]."""
  kept = jax.vmap(lambda rows, kept_k: rows[kept_k])(_by_device(array_r), kept_dk)
  return kept.reshape(-1, *array_r.shape[1:])


def put(array_r: jax.Array, kept_dk: jax.Array, rows: jax.Array) -> jax.Array:
  """[R, ...] with `rows` where `take` found them."""
  rows = rows.reshape(*kept_dk.shape, *array_r.shape[1:])
  put = jax.vmap(lambda array, kept_k, rows: array.at[kept_k].set(rows))
  return put(_by_device(array_r), kept_dk, rows).reshape(array_r.shape)


def _by_device(array_r: jax.Array) -> jax.Array:
  """[devices, R / devices, ...]: the rows of a device are neighbours."""
  devices = parts("batch", array_r.shape[0])
  return array_r.reshape(devices, -1, *array_r.shape[1:])
