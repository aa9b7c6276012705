"""The table of a run's compiled programs: (program, bucket) -> executable, and a record of every compile.

A program is a pure function with a static `bucket`. Its executable is lowered and compiled ahead of its first call and
then called directly, never through jit's own cache (ahead-of-time results do not enter that), so that whoever holds
the table can compile early, count, and inspect:

    define("update", function)      function(*args, bucket=...)
    compile("update", 64, *args)    arrays or ShapeDtypeStructs; nothing runs
    run("update", 64, *args)        compiles on first use, then calls the executable
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True)
class Compile:
  """One compile of a named program. `seconds`: lowering and compiling; `cached`: read from the persistent cache."""

  program: str
  bucket: int
  seconds: float
  cached: bool


class _Listener(threading.local):
  """Which XLA compiles happen, told by jax itself; per thread, since programs may compile in the background."""

  planned = False  # inside ProgramTable.compile
  hits = 0


_listener = _Listener()
_unplanned = 0


def _on_duration(event: str, seconds: float, **_: Any) -> None:
  global _unplanned
  if event == _COMPILED and not _listener.planned:
    _unplanned += 1


def _on_event(event: str, **_: Any) -> None:
  if event == _CACHE_HIT:
    _listener.hits += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


def unplanned_compiles() -> int:
  """XLA compiles of this process that no table asked for, since the process began."""
  return _unplanned


class ProgramTable:
  """The programs of a run, lowered on `mesh` where there is one. `compiles` lists what was compiled, in order."""

  def __init__(self, mesh: Mesh | None = None):
    self.compiles: list[Compile] = []
    self._mesh = mesh
    self._definitions: dict[str, tuple[Callable, tuple[int, ...]]] = {}
    self._executables: dict[Any, jax.stages.Compiled] = {}

  def define(self, program: str, function: Callable, *, donate: tuple[int, ...] = ()) -> None:
    """Names `function(*args, bucket)`; the arguments at the positions in `donate` are used up by a call."""
    if program in self._definitions:
      raise ValueError(f"program {program!r} is defined twice")
    self._definitions[program] = (function, donate)

  def trace(self, program: str, bucket: int, *args: Any) -> jax.stages.Traced:
    """`program` at `bucket` before it is lowered: what it computes, by its jaxpr, on the arrays of all devices."""
    function, donate = self._definitions[program]
    with self._on_mesh():
      return jax.jit(functools.partial(function, bucket=bucket), donate_argnums=donate).trace(*args)

  def compile(self, program: str, bucket: int, *args: Any) -> jax.stages.Compiled:
    """The executable of `program` at `bucket` for arguments of these shapes, dtypes and shardings."""
    key = (program, bucket, *_signature(args))
    if key not in self._executables:
      started, hits = time.perf_counter(), _listener.hits
      _listener.planned = True
      try:
        with self._on_mesh():
          self._executables[key] = self.trace(program, bucket, *args).lower().compile()
      finally:
        _listener.planned = False
      cached = _listener.hits > hits
      self.compiles.append(Compile(program, bucket, time.perf_counter() - started, cached))
    return self._executables[key]

  def run(self, program: str, bucket: int, *args: Any) -> Any:
    """Calls `program` at `bucket`."""
    return self.compile(program, bucket, *args)(*args)

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _signature(args: Any) -> tuple:
  """What an executable is specialised on: tree structure (static fields included), shapes, dtypes, placement."""
  leaves, structure = jax.tree.flatten(args)
  return structure, tuple((leaf.shape, leaf.dtype, _placement(leaf)) for leaf in leaves)


def _placement(leaf: Any) -> Any:
  """The leaf's sharding, spelled one way: XLA says P("fsdp") for an output where we say P(("fsdp",), None)."""
  sharding = getattr(leaf, "sharding", None)
  if not isinstance(sharding, NamedSharding):
    return sharding
  spec = [axes[0] if isinstance(axes, tuple) and len(axes) == 1 else axes or None for axes in sharding.spec]
  while spec and spec[-1] is None:
    spec.pop()
  return sharding.mesh, tuple(spec)
