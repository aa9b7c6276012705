"""The table of programs: what is compiled, when, and what it counts."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax.distributed import make_mesh
from opd_jax.programs import ProgramTable, unplanned_compiles


def pad_sum(x, limit, *, bucket):
  return jnp.where(jnp.arange(bucket) < limit, jnp.pad(x, (0, bucket - x.shape[0])), 0).sum()


def test_one_compile_per_bucket_whatever_the_traced_arguments():
  table = ProgramTable()
  table.define("sum", pad_sum)
  x = np.arange(4, dtype=np.float32)
  before = unplanned_compiles()
  for limit in range(1, 5):
    for bucket in (8, 16):
      assert float(table.run("sum", bucket, x, np.int32(limit))) == sum(range(limit))
  assert [(c.program, c.bucket) for c in table.compiles] == [("sum", 8), ("sum", 16)]
  assert all(c.seconds > 0 for c in table.compiles)
  assert unplanned_compiles() == before


def test_compiling_ahead_runs_nothing_and_serves_the_first_call():
  table = ProgramTable()
  table.define("sum", pad_sum)
  shapes = jax.ShapeDtypeStruct((4,), np.float32), jax.ShapeDtypeStruct((), np.int32)
  table.compile("sum", 8, *shapes)
  assert len(table.compiles) == 1
  assert float(table.run("sum", 8, np.ones(4, np.float32), np.int32(3))) == 3
  assert len(table.compiles) == 1


def test_a_compile_outside_the_table_is_unplanned():
  before = unplanned_compiles()
  jax.jit(lambda x: jnp.sin(x) * 3 + 0.123)(np.float32(1)).block_until_ready()
  assert unplanned_compiles() > before


def test_another_shape_is_another_compile_and_another_spelling_of_a_sharding_is_not():
  mesh = make_mesh((2, 1, 1), jax.devices()[:2])
  table = ProgramTable(mesh)
  table.define("double", lambda x, *, bucket: x * 2)
  x = np.ones((4, 2), np.float32)
  for spec in (PartitionSpec("data"), PartitionSpec("data", None), PartitionSpec(("data",), None)):
    table.run("double", 1, jax.device_put(x, NamedSharding(mesh, spec)))
  assert len(table.compiles) == 1
  table.run("double", 1, jax.device_put(x[:2], NamedSharding(mesh, PartitionSpec("data"))))
  assert len(table.compiles) == 2


def test_donated_arguments_are_used_up():
  table = ProgramTable()
  table.define("next", lambda x, *, bucket: x + 1, donate=(0,))
  x = jnp.zeros(1000)
  table.run("next", 1, x)
  assert x.is_deleted()


def test_a_name_is_defined_once():
  table = ProgramTable()
  table.define("f", pad_sum)
  with pytest.raises(ValueError, match="defined twice"):
    table.define("f", pad_sum)


class Gate:
  """A program whose compiling, in the thread, waits until the test lets it go on."""

  def __init__(self):
    self.entered, self.open = threading.Event(), threading.Event()
    self.table = ProgramTable()
    self.table.define("slow", self.function)

  def function(self, x, *, bucket):
    if threading.current_thread() is not threading.main_thread():
      self.entered.set()
      assert self.open.wait(30)
    return x * bucket


def test_what_is_being_compiled_is_waited_for_and_what_is_queued_is_compiled_at_once():
  gate = Gate()
  x = np.ones(2, np.float32)
  gate.table.compile_ahead([("slow", bucket, (x,)) for bucket in (1, 2, 3)])
  assert gate.entered.wait(30)
  assert gate.table.find("slow", 1, x) is None
  assert gate.table.run("slow", 3, x).tolist() == [3, 3]  # did not wait behind the first
  assert gate.table.find("slow", 3, x) is not None
  threading.Timer(0.2, gate.open.set).start()
  assert gate.table.run("slow", 1, x).tolist() == [1, 1]
  assert gate.table.run("slow", 2, x).tolist() == [2, 2]
  assert {(c.bucket, c.ahead) for c in gate.table.compiles} >= {(1, True), (3, False)}
  assert len(gate.table.compiles) == 3
  gate.table.stop()


def test_stopping_empties_the_queue():
  gate = Gate()
  x = np.ones(2, np.float32)
  gate.table.compile_ahead([("slow", bucket, (x,)) for bucket in (1, 2, 3)])
  assert gate.entered.wait(30)
  gate.table.stop()
  gate.open.set()
  assert gate.table.run("slow", 2, x).tolist() == [2, 2]
  assert {c.bucket for c in gate.table.compiles} <= {1, 2}


def test_an_error_of_the_background_is_raised_when_the_program_is_wanted():
  table = ProgramTable()
  table.define("f", lambda x, *, bucket: jnp.reshape(x, (bucket,)))
  x = np.ones(4, np.float32)
  before = unplanned_compiles()
  table.compile_ahead([("f", 3, (x,)), ("f", 4, (x,))])
  assert table.run("f", 4, x).tolist() == [1] * 4
  with pytest.raises(TypeError):
    table.run("f", 3, x)
  assert unplanned_compiles() == before
  table.stop()
