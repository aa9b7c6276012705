"""Many processes as one program: joining a cluster where there is one, and agreeing on what branches.

Every process runs the same Python on the same config; what it computes with is one global mesh. So everything that
decides which program runs next (horizon, stop, save) must be the same on all of them, and only process 0 writes logs.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from opd_jax.errors import InputError

_HEARTBEAT_SECONDS = 30  # a lost process ends the others within a minute, with a message, instead of a hang
_GRACE_SECONDS = 10  # what is wrong with one process is mostly wrong with all: they may say so themselves
_RENDEZVOUS = "opd_jax/watch"  # key under which process 0 says where it listens


@contextlib.contextmanager
def cluster() -> Iterator[None]:
  """One process of a cluster where there is one, nothing elsewhere. Before any other use of jax.

  A cluster is what jax itself detects (Cloud TPU pods, GKE, SLURM, Open MPI), or what these variables name:
  JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES, JAX_PROCESS_ID.

  Within, the loss of another process ends this one with status 1 and a line on stderr that names the lost one.
  """
  _join()
  watch = _Watch(jax.process_count(), jax.process_index()) if jax.distributed.is_initialized() else None
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
    jax.distributed.initialize(
      named["JAX_COORDINATOR_ADDRESS"],
      int(named["JAX_NUM_PROCESSES"]),
      int(named["JAX_PROCESS_ID"]),
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    return
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  except ValueError:  # what jax raises where it detects no cluster
    return


class _Watch:
  """Tells a process that ended in order from one that was lost. Every process holds a connection to process 0:

      process 1 ──┐
      process 2 ──┼─► process 0 ── "lost 2 ..." ─► 1, 3
      process 3 ──┘

  The last word of one that ends in order is "done" or "failed". A connection that ends without it was closed by the
  kernel of a killed process, or given up by keep-alives to a machine that is gone.

  jax notices too, but aborts with a stack trace in which the lost process is a number on a line of its own (none at
  all where it is process 0), and only after the heartbeat's time. It still does where no connection comes about.
  """

  def __init__(self, processes: int, index: int):
    self._processes, self._index = processes, index
    self._connections: dict[int, socket.socket] = {}
    self._lock, self._over = threading.Lock(), False
    # The key-value store of the coordination service. No public name leads there; a broadcast would, but it compiles,
    # and jax looks for its compilation cache once, at the first compile.
    self._store = distributed.global_state.client
    if index == 0:
      wide = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
      server, token = socket.create_server(("", 0), **wide), secrets.token_hex(8)
      self._store.key_value_set(_RENDEZVOUS, json.dumps([_own_addresses(), server.getsockname()[1], token]))
      _start(self._accept, server, token)
    else:
      _start(self._connect)

  def leave(self, word: str) -> None:
    """Says that this process ends by itself, so that nobody takes it for lost, and watches no more."""
    if word == "failed":
      time.sleep(1)  # the error may be what the loss of another process looks like from here: the reason comes now
    self._over = True
    self._tell(word)

  def _accept(self, server: socket.socket, token: str) -> None:
    while True:
      connection = server.accept()[0]
      _start(self._greet, connection, token)

  def _greet(self, connection: socket.socket, token: str) -> None:
    words = connection.makefile()
    given, _, index = words.readline().strip().partition(" ")
    if given != token or not index.isdigit():
      return
    self._connections[int(index)] = connection
    connection.sendall(b"watching\n")
    self._listen(int(index), connection, words)

  def _connect(self) -> None:
    addresses, port, token = json.loads(self._store.blocking_key_value_get(_RENDEZVOUS, 60_000))
    for address in addresses:
      with contextlib.suppress(OSError):
        connection = socket.create_connection((address, port), timeout=5)
        connection.sendall(f"{token} {self._index}\n".encode())
        words = connection.makefile()
        if words.readline() == "watching\n":
          connection.settimeout(None)
          self._connections[0] = connection
          self._listen(0, connection, words)
          return

  def _listen(self, other: int, connection: socket.socket, words) -> None:
    """Until the other process leaves."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
      if hasattr(socket, name):  # not on every system; jax's heartbeat is left there
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    with contextlib.suppress(OSError):
      for line in words:
        word, *rest = line.strip().split(" ", 2)
        if word == "lost":
          self._end(int(rest[0]), rest[1])
        elif word == "failed":
          time.sleep(_GRACE_SECONDS)
          self._end(other, "it ended with an error, which is in its own output")
        return  # done
    self._end(other, "its connection broke off")

  def _end(self, lost: int, how: str) -> None:
    """Ends this process, unless it is about to end by itself."""
    with self._lock:
      if self._over:
        return
      self._tell(f"lost {lost} {how}", but=lost)
      message = f"process {lost} of {self._processes} was lost: {how}; run the same command again on all hosts"
      with contextlib.suppress(Exception):
        sys.stdout.flush()
      # One write, on a line of its own: jax may be writing its stack trace at the same time.
      os.write(2, f"\nopd_jax: {message}\n".encode())
      if self._index == 0:
        time.sleep(0.5)  # with this process the others lose jax's coordinator too: let them hear the reason first
      os._exit(1)

  def _tell(self, word: str, but: int | None = None) -> None:
    for other, connection in list(self._connections.items()):
      if other != but:
        with contextlib.suppress(OSError):
          connection.sendall(f"{word}\n".encode())


def _start(target, *arguments) -> None:
  threading.Thread(target=target, args=arguments, daemon=True).start()


def _own_addresses() -> list[str]:
  """Under which the other processes may reach this one, likeliest first."""
  addresses = [os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0].strip("[]")]
  with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("192.0.2.1", 9))  # sends nothing; picks the interface that leads out (an address of RFC 5737)
    addresses.append(probe.getsockname()[0])
  return [address for address in (*addresses, socket.gethostname()) if address]


def any_process(flag: bool) -> bool:
  """Whether `flag` is set on at least one process; the same answer on all. Every process must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def fetch(arrays):
  """A pytree of global arrays as numpy arrays, whole, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(arrays)
  return multihost_utils.process_allgather(arrays, tiled=True)
