"""The kernels compile for TPUs and an H200 that are not there. `make test-aot` installs the compilers."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax.decode_attention import attend
from opd_jax.distributed import make_mesh
from opd_jax.distributed.topologies import find_topology
from opd_jax.divergence.aot import devices
from opd_jax.errors import InputError

LAYERS = 4


@pytest.mark.parametrize(
  ("target", "sizes", "dtype"),
  [
    ("v5e:2x2", (64, 8, 2, 1024), jnp.bfloat16),
    ("v5e:2x2", (3, 1, 1, 300), jnp.float32),  # the last block is not whole
    ("v5e:2x2", (8, 32, 1, 1100), jnp.float32),  # the largest blocks
    ("v5p:2x2x1", (64, 8, 4, 4096), jnp.bfloat16),
    ("v6e:2x2", (64, 8, 5, 4096), jnp.bfloat16),
    ("h200", (64, 8, 2, 1024), jnp.bfloat16),
    ("h200", (2, 8, 4, 1100), jnp.float32),  # rows are shared out
  ],
)
def test_compiles_and_holds_no_part_of_the_cache(target, sizes, dtype):
  rows, heads, group, slots = sizes
  try:
    chips = devices(target) if target == "h200" else find_topology(target).devices()
  except (InputError, RuntimeError, ImportError) as error:
    pytest.skip(f"no compiler for {target}: {str(error).splitlines()[0]} (`make test-aot` installs it)")
  mesh = make_mesh((1, 1, 1), chips[:1])
  sharding = NamedSharding(mesh, PartitionSpec())
  implementation = "pallas_gpu" if target == "h200" else "pallas_tpu"

  def decode(query, keys, values, seen):
    """Every layer reads the whole stack, which lies as the program likes it."""
    keys, values = (jnp.tile(x, (LAYERS, 1, 1, 1, 1)) for x in (keys, values))
    call = partial(attend, implementation=implementation, filled=slots)
    return jax.lax.fori_loop(0, LAYERS, lambda layer, query: call(query, keys, values, layer, seen), query)

  def array(*shape, dtype=dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  arrays = array(rows, 1, heads * group, 128), array(1, rows, heads, 128, slots), array(1, rows, heads, slots, 128)
  with jax.set_mesh(mesh):
    compiled = jax.jit(decode).lower(*arrays, array(rows, slots, dtype=bool)).compile()
  text = compiled.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') + text.count("__gpu$xla.gpu.triton") == 1
  layer_bytes = 2 * rows * heads * -(-slots // 128) * 128 * 128 * dtype(0).itemsize
  # The stack, the transposed keys of the one that it is made of, and what is small.
  assert compiled.memory_analysis().temp_size_in_bytes < (LAYERS + 1) * layer_bytes + (4 << 20)
