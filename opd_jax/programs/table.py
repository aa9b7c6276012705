"""The table of a run's compiled programs: (program, bucket) -> executable, and a record of every compile.

A program is a pure function with a static `bucket`. Its executable is lowered and compiled ahead of its first call and
then called directly, never through jit's own cache (ahead-of-time results do not enter that), so that whoever holds
the table can compile early, count, and inspect:

    define("update", function)             function(*args, bucket=...)
    compile("update", 64, *args)           arrays or ShapeDtypeStructs; nothing runs
    compile_ahead([("update", 128, args)]) the same in a thread, in this order, while the caller goes on
    run("update", 64, *args)               compiles on first use, then calls the executable

What is wanted while it is being compiled in the thread is waited for; what still stands in the queue is taken out of it
and compiled by who wants it. Compiling moves no data between devices, so hosts need not agree on when they do it.
"""

import contextlib
import dataclasses
import functools
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"
_NONE: Mapping[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Compile:
  """One compile of a named program.

  Attributes:
    program, bucket: which.
    seconds: tracing, lowering and compiling.
    cached: the executable was read from the persistent cache.
    ahead: it happened in the background.
  """

  program: str
  bucket: int
  seconds: float
  cached: bool
  ahead: bool


@dataclasses.dataclass(frozen=True)
class _Definition:
  function: Callable
  donate: tuple[int, ...]
  options: Mapping[str, str]


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
    self._definitions: dict[str, _Definition] = {}
    self._executables: dict[Any, jax.stages.Compiled] = {}
    self._ahead: dict[Any, Future] = {}
    self._thread: ThreadPoolExecutor | None = None

  def define(
    self, program: str, function: Callable, *, donate: tuple[int, ...] = (), simulated: Mapping[str, str] = _NONE
  ) -> None:
    """Names `function(*args, bucket)`; the arguments at the positions in `donate` are used up by a call. `simulated`:
    options for XLA, name -> value, where several devices are simulated on a CPU."""
    if program in self._definitions:
      raise ValueError(f"program {program!r} is defined twice")
    self._definitions[program] = _Definition(function, donate, simulated)

  def trace(self, program: str, bucket: int, *args: Any) -> jax.stages.Traced:
    """`program` at `bucket` before it is lowered: what it computes, by its jaxpr, on the arrays of all devices."""
    definition = self._definitions[program]
    function = functools.partial(definition.function, bucket=bucket)
    with self._on_mesh():
      return jax.jit(function, donate_argnums=definition.donate).trace(*args)

  def compile(self, program: str, bucket: int, *args: Any) -> jax.stages.Compiled:
    """The executable of `program` at `bucket` for arguments of these shapes, dtypes and shardings."""
    key = _key(program, bucket, args)
    if key not in self._executables:
      ahead = self._ahead.pop(key, None)
      if ahead is None or ahead.cancel():  # what has begun cannot be cancelled
        self._executables[key] = self._compile(program, bucket, args, ahead=False)
      else:
        self._executables[key] = ahead.result()
    return self._executables[key]

  def compile_ahead(self, programs: Iterable[tuple[str, int, tuple]]) -> None:
    """Queues (program, bucket, arguments) to be compiled in the background, one after the other.

    An error in one of them is raised when it is asked for. Call `stop` when the run ends.
    """
    self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile-ahead")
    for program, bucket, args in programs:
      key = _key(program, bucket, args)
      if key not in self._executables and key not in self._ahead:
        self._ahead[key] = self._thread.submit(self._compile, program, bucket, args, ahead=True)

  def find(self, program: str, bucket: int, *args: Any) -> jax.stages.Compiled | None:
    """The executable, if `compile` would give it at once."""
    key = _key(program, bucket, args)
    if key in self._ahead and self._ahead[key].done():
      self._executables[key] = self._ahead.pop(key).result()
    return self._executables.get(key)

  def stop(self) -> None:
    """Takes what has not begun to compile out of the queue."""
    if self._thread is not None:
      self._thread.shutdown(wait=False, cancel_futures=True)
      self._thread, self._ahead = None, {}

  def run(self, program: str, bucket: int, *args: Any) -> Any:
    """Calls `program` at `bucket`."""
    return self.compile(program, bucket, *args)(*args)

  def first_nan(self, program: str, bucket: int, *args: Any) -> str | None:
    """Runs `program` uncompiled, one operation after the other, up to the first that makes a NaN: its name and where
    it stands. None where none does. It takes long and much memory; no argument is used up."""
    function = self._definitions[program].function
    try:
      with self._on_mesh(), jax.disable_jit(), jax.debug_nans(True):
        function(*args, bucket=bucket)
    except FloatingPointError as error:
      return _place(error)
    return None

  def _compile(self, program: str, bucket: int, args: tuple, *, ahead: bool) -> jax.stages.Compiled:
    started, hits = time.perf_counter(), _listener.hits
    _listener.planned = True
    try:
      with self._on_mesh():
        executable = _compile(self.trace(program, bucket, *args).lower(), self._options(program))
    finally:
      _listener.planned = False
    cached = _listener.hits > hits
    self.compiles.append(Compile(program, bucket, time.perf_counter() - started, cached, ahead))
    return executable

  def _options(self, program: str) -> Mapping[str, str]:
    several = self._mesh is not None and self._mesh.size > 1
    return self._definitions[program].options if several and self._mesh.devices.flat[0].platform == "cpu" else _NONE

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _compile(lowered: jax.stages.Lowered, options: Mapping[str, str]) -> jax.stages.Compiled:
  """With the options, unless this XLA does not know them: they are for speed, and their names come and go."""
  try:
    return lowered.compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as error:
    if not any(name in str(error) for name in options):
      raise
    return lowered.compile()


def _place(error: FloatingPointError) -> str:
  """What jax says of an operation that made a NaN, and the line of ours that it comes from."""
  package = Path(__file__).parents[1]
  frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(package)]
  line = f"{Path(frames[-1].filename).relative_to(package.parent)} line {frames[-1].lineno}: {frames[-1].line}"
  return f"{str(error).splitlines()[0].rpartition(' ')[2]} at {line}"


def _key(program: str, bucket: int, args: tuple) -> tuple:
  return (program, bucket, *_signature(args))


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
