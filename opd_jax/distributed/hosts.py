"""Many processes as one program: joining a cluster where there is one, and agreeing on what branches.

Every process runs the same Python on the same config; what it computes with is one global mesh. So everything that
decides which program runs next (horizon, stop, save) must be the same on all of them, and only process 0 writes logs.
"""

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from opd_jax.distributed.watch import Watch
from opd_jax.errors import InputError

_HEARTBEAT_SECONDS = 30  # a lost process ends the others within a minute, with a message, instead of a hang

# On CPUs a collective between processes, and with later jaxlibs one between simulated devices, waits in a thread of
# XLA's pool, of which there are as many as local devices. Two that do not depend on each other, such as a sum of
# gradients and a gather of a loop's weights, may be under way at once for one device; then another device finds no
# thread for its part, and all wait for ever:
#     4 threads    device 0: sum │ device 0: gather │ device 1: sum │ device 2: sum    device 3 has none
# The number is read when the first array is made, wherever that is: in a command, a notebook or a test.
os.environ.setdefault("PJRT_NPROC", "128")


@contextlib.contextmanager
def cluster() -> Iterator[None]:
  """One process of a cluster where there is one, nothing elsewhere. Before any other use of jax.

  A cluster is what jax itself detects (Cloud TPU pods, GKE, SLURM, Open MPI), or what these variables name:
  JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

  Within, the loss of another process ends this one with status 1 and a line on stderr that names the lost one.
  """
  _join()
  watch = Watch(jax.process_count(), jax.process_index()) if jax.distributed.is_initialized() else None
  word = "failed"
  try:
    yield
    word = "done"
  except SystemExit:  # preempted: all processes stop at the same step
    word = "done"
    raise
  finally:
    if watch is not None:
      watch.leave(word)


def _join() -> None:
  """`jax.distributed.initialize` where there is a cluster."""
  named = {name: os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
  if any(named.values()):
    missing = [name for name, value in named.items() if not value]
    if missing or not (named["JAX_NUM_PROCESSES"].isdigit() and named["JAX_PROCESS_ID"].isdigit()):
      raise InputError(f"a cluster needs {', '.join(named)}, the last two as numbers; missing: {missing or 'none'}")
    address, processes, index = (named[name] for name in named)
    if not re.fullmatch(r".+:\d+", address) or int(index) >= int(processes):
      raise InputError(
        f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={processes} JAX_PROCESS_ID={index}: the address must be "
        "host:port, and the id less than the number of processes"
      )
    jax.distributed.initialize(address, int(processes), int(index), heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    return
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  except ValueError:  # what jax raises where it detects no cluster
    return


def any_process(flag: bool) -> bool:
  """Whether `flag` is set on at least one process; the same answer on all. Every process must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_first_process(number: int) -> int:
  """Process 0's number (int32), on all. Every process must call it, and none goes on before process 0 has."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def fetch(arrays):
  """A pytree of global arrays as numpy arrays, whole, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(arrays)
  return multihost_utils.process_allgather(arrays, tiled=True)
