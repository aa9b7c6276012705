"""Where things live: the mesh that both models share, and the table from axis names to mesh axes."""

from opd_jax.distributed.axes import DECODING, TRAINING, constrain, partition_spec, sharding
from opd_jax.distributed.hosts import any_process, fetch, join_cluster
from opd_jax.distributed.mesh import make_mesh, mesh_of, place_rows

__all__ = [
  "DECODING",
  "TRAINING",
  "any_process",
  "constrain",
  "fetch",
  "join_cluster",
  "make_mesh",
  "mesh_of",
  "partition_spec",
  "place_rows",
  "sharding",
]
