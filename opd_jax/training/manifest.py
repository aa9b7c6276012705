"""What the files of a checkpoint were when it was finished, so that damage is known before anything of it is used.

    checkpoints/100/   state/...  progress/...     bytes of Orbax
                       manifest.json               size and CRC-32 of each, written before the folder gets its name
    checkpoints/99.damaged/                        as it was found; its step can be written again

A checksum is the price of reading every byte once, after a save (in the background) and before a restore.
"""

import itertools
import json
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from opd_jax.distributed import from_first_process
from opd_jax.errors import InputError
from opd_jax.telemetry.rows import replace_file, writing

MANIFEST = "manifest.json"
_EMPTY = "it is empty"  # left by a deletion that was killed, or made by a person: nothing is lost with it
_PARTS = ("state", "progress")  # folders that every checkpoint has

# Orbax touches these once more after the manifest has been written. It restores without them.
_WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
_BLOCK = 1 << 20
_THREADS = 8  # zlib lets go of the interpreter: a few at once are as fast as most disks
_NO_STEP, _NONE_SOUND = -1, -2


def write_manifest(folder: Path) -> None:
  """Writes the folder's manifest. InputError where it cannot be written."""
  names = [name for name in _files(folder) if name not in _WRITTEN_LATER]
  with ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda name: _size_and_sum(folder / name), names)
    files = dict(zip(names, map(list, sums), strict=True))
  replace_file(folder / MANIFEST, json.dumps({"files": files, "checksum": _sum_of(files)}))


def damage(folder: Path) -> str | None:
  """What is wrong with a checkpoint, None where nothing is known to be.

  Without a manifest (an older version wrote it) nothing is known of its bytes, only whether its folders are there.
  """
  if not folder.is_dir():
    return "it is not a folder"
  names = list(_files(folder))
  if not names:
    return _EMPTY
  if MANIFEST not in names:
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    return f"{missing[0]} is missing" if missing else None
  try:
    written = json.loads((folder / MANIFEST).read_bytes())
    files, checksum = written["files"], written["checksum"]
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return f"{MANIFEST} cannot be read"
  if _sum_of(files) != checksum:
    return f"{MANIFEST} has other bytes than were written"
  with ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda item: _difference(folder / item[0], *item[1]), files.items())
    return next((f"{name} {what}" for name, what in zip(files, found) if what), None)


def pass_over_damaged(folder: Path, repairs: bool) -> tuple[int | None, tuple[str, ...]]:
  """The step of the newest checkpoint that is not damaged, None where there is none; and a line for each that is newer.

  Process 0 looks and has the lines; all go by what it finds. `repairs`: it renames the damaged ones.

  Raises InputError where all are damaged; nothing is renamed then.
  """
  found, lines, step = {}, (), _NO_STEP
  if jax.process_index() == 0:
    for step in [*sorted(_steps(folder), reverse=True), _NO_STEP]:
      if step == _NO_STEP or (why := damage(folder / str(step))) is None:
        break
      found[step] = why
    if step == _NO_STEP and any(why != _EMPTY for why in found.values()):
      step = _NONE_SOUND
    else:
      lines = tuple(_passed_over(folder / str(number), why, repairs, step) for number, why in found.items())
  step = from_first_process(step)
  if step == _NONE_SOUND:
    named = "; ".join(f"{number}: {why}" for number, why in found.items()) or "process 0 names them"
    raise InputError(
      f"every checkpoint in {folder} is damaged ({named}): bring back a copy of one, or choose another --workdir"
    )
  return None if step == _NO_STEP else step, lines


def _passed_over(place: Path, why: str, repairs: bool, step: int) -> str:
  """The line about a damaged checkpoint, which is renamed where it stands in the way."""
  line = f"checkpoint {place} is damaged: {why}"
  if repairs:
    names = (f"{place.name}.damaged{number or ''}" for number in itertools.count())
    aside = next(path for path in map(place.with_name, names) if not path.exists())
    with writing(place):
      place.rename(aside)
    line += f", kept as {aside.name}"
  return line + (f"; going on from step {step}" if step != _NO_STEP else "")


def _steps(folder: Path) -> Iterator[int]:
  """Steps that have a name in the folder, as Orbax writes them."""
  names = (path.name for path in folder.glob("*"))
  return (int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def _difference(path: Path, size: int, checksum: int) -> str | None:
  """How a file differs from what was written. Its size is looked at first: that costs nothing."""
  try:
    if path.stat().st_size != size:
      return f"has {path.stat().st_size} bytes of {size}"
    return None if _size_and_sum(path)[1] == checksum else "has other bytes than were written"
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"cannot be read ({error.strerror})"


def _size_and_sum(path: Path) -> tuple[int, int]:
  size = checksum = 0
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return size, checksum


def _sum_of(files: dict[str, list[int]]) -> int:
  return zlib.crc32(json.dumps(files).encode())


def _files(folder: Path) -> Iterator[str]:
  """Names of all files below a folder, sorted."""
  return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
