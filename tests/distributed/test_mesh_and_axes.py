"""From names of axes to places on a mesh."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from opd_jax.distributed import DECODING, constrain, make_mesh, mesh_of, partition_spec, place_rows
from opd_jax.distributed.mesh import mesh_shape
from opd_jax.errors import InputError


@given(st.permutations([1, 2, 4]), st.integers(0, 2))
def test_one_axis_may_take_the_rest(sizes, free):
  asked = tuple(-1 if i == free else size for i, size in enumerate(sizes))
  assert mesh_shape(asked, 8) == tuple(sizes)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 8, 1), (-2, 4, 1), (16, -1, 1), (1, 1, 1)])
def test_a_mesh_that_does_not_multiply_is_refused(sizes):
  with pytest.raises(InputError, match=r"mesh\.data="):
    mesh_shape(sizes, 8)


def test_specs_follow_the_table_and_replicate_what_does_not_divide():
  mesh = make_mesh((2, 2, 2))
  assert partition_spec(("layers", "heads", "head_dim", "embed"), (2, 4, 8, 32), mesh) == P(
    None, "tensor", None, "fsdp"
  )
  assert partition_spec(("layers", "heads", "head_dim", "embed"), (2, 4, 8, 32), mesh, DECODING) == P(
    None, "tensor", None, None
  )
  assert partition_spec(("kv_heads", "embed"), (1, 32), mesh) == P(None, "fsdp")
  assert partition_spec(("batch", None), (8, 3), mesh) == P(("data", "fsdp"), None)
  assert partition_spec(("vocab", "embed"), (40, 32), make_mesh((8, 1, 1))) == P(None, None)


def test_two_dimensions_cannot_share_a_mesh_axis():
  with pytest.raises(ValueError, match="tensor"):
    partition_spec(("vocab", "mlp"), (8, 8), make_mesh((1, 1, 8)))


def test_constrain_places_inside_jit_and_does_nothing_without_a_mesh():
  x = np.ones((8, 4), np.float32)
  assert constrain(x, "batch", None) is x
  mesh = make_mesh((4, 2, 1))
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: constrain(x * 2, "batch", None))(x)
  assert y.sharding.shard_shape(y.shape) == (1, 4)


def test_rows_are_split_over_data_and_fsdp():
  mesh = make_mesh((2, 2, 2))
  tokens, rows = place_rows(mesh, (np.ones((8, 5), np.int32), np.arange(8)))
  assert tokens.sharding.shard_shape((8, 5)) == (2, 5) and rows.sharding.shard_shape((8,)) == (2,)
  assert mesh_of({"a": tokens}) == mesh and mesh_of(np.ones(3)) is None
