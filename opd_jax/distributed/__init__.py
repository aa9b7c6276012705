"""Where things live: the mesh that both models share, and the table from axis names to mesh axes."""

from opd_jax.distributed.axes import DECODING, TRAINING, constrain, partition_spec, parts, sharding
from opd_jax.distributed.hosts import any_process, cluster, fetch, from_first_process
from opd_jax.distributed.mesh import make_mesh, mesh_of, place_rows

__all__ = [
  "DECODING",
  "TRAINING",
  "any_process",
  "cluster",
  "constrain",
  "fetch",
  "from_first_process",
  "make_mesh",
  "mesh_of",
  "partition_spec",
  "parts",
  "place_rows",
  "sharding",
]
