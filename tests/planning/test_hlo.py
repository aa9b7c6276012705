"""Loops unrolled: text written by hand, and compiled programs whose work is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from opd_jax.distributed import make_mesh
from opd_jax.planning.compiled import matmul_flops
from opd_jax.planning.hlo import read_work

MODULE = """HloModule jit_f, is_scheduled=true

%layers_cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(28)
  %p.1 = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%fused (q: f32[8]) -> f32[8] {
  ROOT %inner = f32[8]{0:T(128)} negate(%q), backend_config={"window_config":{"estimated_cycles":"5000"}}
}

%layers_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = (bf16[2,4]{1,0}, bf16[16,4]{1,0}, u32[]{:S(2)}) all-gather-start(%w), dimensions={0}
  %ag.done = bf16[16,4]{1,0} all-gather-done(%ag)
  %k = f32[8]{0} custom-call(%ag.done), backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"640"}}
  %g = f32[32]{0} fusion(%ag.done), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %f = f32[8]{0} fusion(%ag.done), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
}

%decode_cond (p: (s32[], s32[])) -> pred[] {
  %none = s32[]{:T(128)} constant(0)
  %rows = u32[]{:T(128)} all-reduce(%x), to_apply=%add
  %some = pred[] compare(%rows, %none), direction=GT
  %lt.2 = pred[] compare(%a, %b), direction=LT
  ROOT %both = pred[] and(%lt.2, %some)
}

%decode_body (p: (s32[], s32[])) -> (s32[], s32[]) {
  ROOT %w.1 = (s32[], f32[8]) while(%p.3), condition=%layers_cond, body=%layers_body
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %first = (s32[], f32[8]) while(%x), condition=%c, body=%layers_body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %second = (s32[], s32[]) while(%x), condition=%decode_cond, body=%decode_body
}
"""


def test_text_is_counted_once_and_run_as_often_as_it_runs():
  work = read_work(MODULE, open_trips=10)
  assert work.collectives == {"all-gather": 1, "all-reduce": 1}
  layers = 3 + 10 * 28
  assert work.collective_bytes == {"all-gather": layers * 16 * 4 * 2, "all-reduce": 10 * 4}
  assert work.cycles == layers * 100  # what is inside a fusion is in the fusion's own number
  assert work.kernel_bytes == layers * (640 + 32 * 4)  # and the result of a fusion that the compiler gave up on


def test_a_compiled_scan_of_reductions():
  """Five products whose contraction is split over 8 devices: a sum of [4, 16] float32 at every turn."""
  mesh = make_mesh((1, 8, 1), jax.devices()[:8])

  def f(x_bd, w_lde):
    def body(carry, w_de):
      product = jnp.einsum("bd,de->be", carry, w_de)
      return jax.lax.with_sharding_constraint(jnp.tanh(product), NamedSharding(mesh, P())), None

    return jax.lax.scan(body, x_bd, w_lde)[0]

  x = jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
  w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
  work = read_work(jax.jit(f).lower(x, w).compile().as_text(), open_trips=999)
  assert work.collectives == {"all-reduce": 1}
  assert work.collective_bytes == {"all-reduce": 5 * 4 * 16 * 4}


@pytest.mark.parametrize("length", [1, 7])
def test_products_are_counted_through_loops_and_gradients(length):
  def f(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=length)[0].sum()

  x, w = jnp.zeros((3, 5)), jnp.zeros((5, 5))
  one = 2 * 3 * 5 * 5
  assert matmul_flops(jax.make_jaxpr(f)(x, w).jaxpr, 0) == length * one
  # backward: by the carry and by the weights, one product each
  assert matmul_flops(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(x, w).jaxpr, 0) == 3 * length * one


def test_an_open_loop_turns_as_often_as_it_is_told():
  def f(x, n):
    return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))

  assert matmul_flops(jax.make_jaxpr(f)(jnp.zeros((4, 4)), 3).jaxpr, 11) == 11 * 2 * 4**3
