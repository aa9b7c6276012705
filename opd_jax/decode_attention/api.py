"""The operation: attention of the last tokens of each row over one layer of a stacked cache.

A kernel is taken wherever it has the shapes. Of the libraries' kernels none reads this cache: they take whole operands,
so that a layer would be copied out of the stack for them, or begin every row at slot 0, where ours has its padding.
XLA's form reads the cache in place on a TPU; there the kernel is predicted to be as fast or faster, skips left padding,
and spares the stages, each of which is compiled. On a GPU XLA's form moves the slots three times. Neither kernel was
timed on its machine (benchmarks/results/decode_attention.md).
"""

from functools import partial

import jax
import jax.numpy as jnp

from opd_jax.decode_attention import pallas_gpu, pallas_tpu, reference
from opd_jax.decode_attention.sharded import over_mesh

_KERNELS = {"pallas_tpu": pallas_tpu.attend, "pallas_gpu": pallas_gpu.attend}
IMPLEMENTATIONS = ("auto", "reference", *_KERNELS)


def attend(
  query_btnh: jax.Array,
  keys_lbkhs: jax.Array,
  values_lbksh: jax.Array,
  layer: jax.Array | int,
  keys_bs: jax.Array,
  filled: jax.Array | int,
  *,
  stages: tuple[int, ...] = (),
  implementation: str = "auto",
  interpret=False,
) -> jax.Array:
  """[B, T, N, H] in the values' dtype: query head n reads key-value head n // (N / K). Softmax in float32.

  The T queries stand last of the first S slots and see none after themselves. The kernels read a row's slots from
  its first to its last one that is seen; XLA's form reads the same number of slots of all rows, in `stages`.

  Args:
    query_btnh: [B, T, N, H], scaled here by H^-0.5.
    keys_lbkhs: [L, B, K, H, slots], at least S of them.
    values_lbksh: [L, B, K, slots, H].
    layer: which of L; may be traced.
    keys_bs: bool [B, S], true where a slot holds a token. A row without any gets a finite value.
    filled: slots that are written in any row; may be traced. XLA's form attends the first stage that holds them.
    stages: numbers of slots, each a branch of XLA's form; S is always one.
    implementation: `auto` a kernel on the platform that the program is lowered for where it has the shapes, else
      `reference`, XLA's form; `pallas_tpu` and `pallas_gpu` need T = 1.
    interpret: run a Pallas kernel by its interpreter, on any machine.

  Raises ValueError for a kernel that is asked for by name and does not have the shapes.
  """
  arrays = query_btnh, keys_lbkhs, values_lbksh, jnp.asarray(layer, jnp.int32), keys_bs
  plain = partial(reference.attend, filled=filled, stages=stages)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r}: choose from {', '.join(IMPLEMENTATIONS)}")
  if implementation == "reference":
    return plain(*arrays)
  if implementation == "auto":
    has = {name: not _lacks(name, query_btnh, values_lbksh) for name in _KERNELS}
    kernels = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}
    chosen = {platform: partial(_run, _KERNELS[name]) for platform, name in kernels.items() if has[name]}
    return jax.lax.platform_dependent(*arrays, **chosen, default=plain) if chosen else plain(*arrays)
  if lacks := _lacks(implementation, query_btnh, values_lbksh):
    raise ValueError(f"implementation={implementation!r} {lacks}: use 'auto' or 'reference'")
  return _run(partial(_KERNELS[implementation], interpret=interpret), *arrays)


def _lacks(kernel: str, query_btnh: jax.Array, values_lbksh: jax.Array) -> str:
  """Why a kernel cannot have a call; empty if it can."""
  t, h = query_btnh.shape[1], query_btnh.shape[3]
  k, mesh = values_lbksh.shape[2], jax.sharding.get_abstract_mesh()
  if t > 1:
    return f"has one query a row, not {t}"
  if values_lbksh.dtype not in (jnp.bfloat16, jnp.float32) or query_btnh.dtype != values_lbksh.dtype:
    return f"is for bfloat16 or float32, not queries {query_btnh.dtype} on values {values_lbksh.dtype}"
  if kernel == "pallas_tpu" and h % 128:
    # The values' rows would be padded to 128 in memory, where XLA lays them out otherwise.
    return f"needs heads of a multiple of 128, not {h}"
  if kernel == "pallas_gpu" and (h < 16 or h & (h - 1)):
    return f"needs heads of a power of two, at least 16, not {h}"
  if not mesh.empty and k % mesh.shape.get("tensor", 1):
    return f"cannot split {k} key-value heads over tensor={mesh.shape['tensor']}"
  return ""


def _run(kernel, query_b1nh, keys_lbkhs, values_lbksh, layer, keys_bs) -> jax.Array:
  b, _, n, h = query_b1nh.shape
  k = values_lbksh.shape[2]
  mixed_bkgh = over_mesh(kernel, query_b1nh.reshape(b, k, n // k, h), keys_lbkhs, values_lbksh, layer, keys_bs)
  return mixed_bkgh.reshape(b, 1, n, h)
