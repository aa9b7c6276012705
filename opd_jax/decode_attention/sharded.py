"""A kernel on a mesh: each device has its rows and its key-value heads, with their queries, and talks to nobody."""

import jax
from jax.sharding import PartitionSpec

from opd_jax.distributed import partition_spec


def over_mesh(kernel, query_bkgh, keys_lbkhs, values_lbksh, layer, keys_bs) -> jax.Array:
  """`kernel` of these arrays, on every device of the mesh of `jax.set_mesh`; as it is where there is none."""
  arrays, mesh = (query_bkgh, keys_lbkhs, values_lbksh, layer, keys_bs), jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(*arrays)

  def spec(array, *axes):
    return partition_spec(axes, array.shape, mesh)

  by_head = spec(query_bkgh, "batch", "kv_heads", None, None)
  specs = (
    by_head,
    spec(keys_lbkhs, "layers", "batch", "kv_heads", "head_dim", "length"),
    spec(values_lbksh, "layers", "batch", "kv_heads", "length", "head_dim"),
    PartitionSpec(),
    spec(keys_bs, "batch", "length"),
  )
  return jax.shard_map(kernel, mesh=mesh, in_specs=specs, out_specs=by_head, check_vma=False)(*arrays)
