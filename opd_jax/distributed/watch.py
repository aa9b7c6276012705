"""Telling a process that ended in order from one that was lost. Every process holds a connection to process 0:

    process 1 ──┐
    process 2 ──┼─► process 0 ── "lost 2 ..." ─► 1, 3
    process 3 ──┘

The last word of one that ends in order is "done" or "failed". A connection that ends without it was closed by the
kernel of a killed process, or given up by keep-alives to a machine that is gone.

jax notices too, but aborts with a stack trace in which the lost process is a number on a line of its own (none at
all where it is process 0), and only after the heartbeat's time. It still does where no connection comes about.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time

from jax._src import distributed

_GRACE_SECONDS = 10  # what is wrong with one process is mostly wrong with all: they may say so themselves
_RENDEZVOUS = "opd_jax/watch"  # key under which process 0 says where it listens


class Watch:
  """Watches over the other processes of a cluster, from when it is made until `leave`."""

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
