"""One input through `opd_jax.train`, in this process up to the first weight, or in one of its own; and what came of it.

refused    one line "error: ...", status 2, and nothing written       what is asked for
accepted   the run would have begun                                    where chance has made nothing bad
anything else is a fault: a traceback, more lines, too long, too much memory, a file that was touched
"""

import contextlib
import dataclasses
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from benchmarks.fuzzing import configs, models, prompts
from benchmarks.fuzzing.case import Case, Maker
from opd_jax import command_line
from opd_jax.training import open_run

KINDS: dict[str, Maker] = {
  "override": configs.override,
  "config file": configs.config_file,
  "workdir": configs.workdir,
  "JSONL": prompts.jsonl,
  "no file": prompts.no_file,
  "parquet": prompts.parquet,
  "TFDS": prompts.tfds,
  "tokenizer": models.tokenizer,
  "endless template": models.endless_template,
  "config.json": models.architecture,
  "safetensors": models.safetensors,
  "index": models.index,
}
SECONDS, MEMORY = 60.0, 3 << 30  # that an input may take; of memory, beyond what is held when it comes
REFUSED, ACCEPTED = "refused", "accepted"
_LONGEST = 25_000  # characters of the line: InputError's limit, each spelled out


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of an input.

  Attributes:
    what: REFUSED, ACCEPTED, or the fault in a few words.
    said: the line, or the end of what was said instead.
    seconds, memory: wall time; largest resident memory of the process, bytes.
  """

  what: str
  said: str
  seconds: float
  memory: int


class _Overdue(BaseException):
  """Raised in the middle of whatever takes too long."""


def make_case(kind: str, seed: int, number: int, folder: Path, base: Path) -> Case:
  """The same for the same numbers."""
  return KINDS[kind](random.Random(f"{seed} {kind} {number}"), folder, base)


def fingerprint(case: Case, folder: Path) -> str:
  """Of its flags and of the bytes of its files: two inputs with one fingerprint are one."""
  digest = hashlib.sha256(repr([flag.replace(str(folder), "") for flag in case.flags]).encode("utf-8", "replace"))
  for path in sorted(folder.rglob("*")):
    digest.update(str(path.relative_to(folder)).encode("utf-8", "replace"))
    if path.is_symlink():
      digest.update(os.readlink(path).replace(str(folder), "").encode())
    elif path.is_file():
      digest.update(path.read_bytes().replace(str(folder).encode(), b""))
  return digest.hexdigest()


def run_here(case: Case, folder: Path, base: Path) -> Outcome:
  """In this process, as far as `open_run`: before the first weight is read."""
  arguments = _arguments(case, folder, base)
  before, argv, started = _seen(folder), sys.argv, time.monotonic()
  sys.argv = ["opd_jax.train", *arguments]
  status: object = None
  with _captured() as said, _limited():
    try:
      command_line.run(lambda config: open_run(config, command_line.workdir(), jax.devices()[:1]) and None)
    except SystemExit as stop:
      status = stop.code
    except _Overdue:
      status = f"took more than {SECONDS:.0f} seconds"
    except BaseException as error:
      status = f"raised {type(error).__name__}: {error}"
    finally:
      sys.argv = argv
  seconds, memory = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  touched = _seen(folder) != before
  return Outcome(_judge(status, said[0], touched), said[0][-_LONGEST:], seconds, memory)


def run_apart(case: Case, folder: Path, base: Path) -> Outcome:
  """In a process of its own, with a home, a cache and a place for temporary files that are watched as well."""
  home = folder.with_name(f"{folder.name}.home")
  home.mkdir()
  places = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "OPD_JAX_CACHE", "XDG_CACHE_HOME"), str(home))
  environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "XLA_FLAGS": ""}
  environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path.cwd()), "MPLCONFIGDIR": str(home)}
  before, started = (_seen(folder), _seen(home)), time.monotonic()
  with tempfile.TemporaryFile() as said:
    child = subprocess.Popen(
      [sys.executable, "-m", "opd_jax.train", *_arguments(case, folder, base)],
      env=environment,
      cwd=home,
      stdin=subprocess.DEVNULL,
      stdout=said,
      stderr=said,
    )
    with _alarm(child.kill):
      _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    said.seek(0)
    text = said.read().decode(errors="replace")
  seconds = time.monotonic() - started
  outcome = child.returncode if seconds < SECONDS else f"took more than {SECONDS:.0f} seconds"
  if used.ru_maxrss * 1024 > MEMORY:
    outcome = f"held {used.ru_maxrss >> 10} MiB"
  touched = (_seen(folder), _seen(home)) != before
  return Outcome(_judge(outcome, text, touched), text[-_LONGEST:], seconds, used.ru_maxrss * 1024)


def _arguments(case: Case, folder: Path, base: Path) -> list[str]:
  """The flags of a case come last: they win."""
  return [f"--config={case.config or base / 'config.py'}", f"--workdir={folder / 'run'}", *case.flags]


def _judge(status: object, said: str, touched: bool) -> str:
  lines = [line for line in said.splitlines() if line.strip()]
  if touched:
    return "a file was touched"
  if status is None or status == 0:
    return ACCEPTED
  if status != 2:
    return f"status {status}"[:300]
  if "Traceback" in said or not lines or not lines[-1].startswith("error: "):
    return "no line of what is wrong"
  if len(lines) > 1:
    return "more than one line"
  return REFUSED if lines[0].isprintable() and len(lines[0]) < _LONGEST else "a line that no terminal should get"


def _seen(folder: Path) -> list[tuple]:
  """Every entry below a folder, with size and time of its last change."""
  entries = []
  for place, folders, files in os.walk(folder):
    for name in (*folders, *files):
      found = os.lstat(os.path.join(place, name))
      entries.append((os.path.join(place, name), found.st_mode, found.st_size, found.st_mtime_ns))
  return sorted(entries)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
  """What is written to stdout and stderr, by Python and by whatever it calls: [text], once it is over."""
  said, kept = [""], [os.dup(1), os.dup(2)]
  with tempfile.TemporaryFile() as file, open(file.fileno(), "w", closefd=False, errors="backslashreplace") as stream:
    for fd in (1, 2):
      os.dup2(file.fileno(), fd)
    try:
      with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield said
        stream.flush()
    finally:
      for fd, old in zip((1, 2), kept):
        os.dup2(old, fd)
        os.close(old)
      file.seek(0)
      said[0] = file.read().decode(errors="replace")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  """Bounds on the address space and on time for what runs here."""
  limits = resource.getrlimit(resource.RLIMIT_AS)
  held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, limits[1]))

  def overdue() -> None:
    raise _Overdue

  try:
    with _alarm(overdue):
      yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def _alarm(act: Callable[[], None]) -> Iterator[None]:
  """Calls `act` after SECONDS, in the main thread."""
  previous = signal.signal(signal.SIGALRM, lambda *_: act())
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
