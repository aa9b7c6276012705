"""Attention of one new token a row over the keys and values of a stacked cache, where they lie.

api         the operation: which form runs
reference   XLA: everywhere, and for several queries a row; slots in stages
pallas_tpu  kernel for TPUs; pallas_gpu for GPUs
blocks      which blocks of slots a row has to read
sharded     the kernels on a mesh
"""

from opd_jax.decode_attention.api import attend

__all__ = ["attend"]
