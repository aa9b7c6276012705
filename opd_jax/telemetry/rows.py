"""One JSON object a line: how `metrics.jsonl`, `eval.jsonl` and `samples.jsonl` are written, read and cut back.

A run can be killed anywhere, so the last line of a file may be torn. And what was written after the checkpoint that a
run resumes from will be written again, so it is dropped first:

    step 1 │ step 2 │ step 3 │ step 4 │ {"step": 5, "lo          resume from the checkpoint of step 3:
    └──────── kept ──────────┘└────── dropped ───────┘           the file ends with step 3

Floats are written with `repr`'s shortest round trip, so rows of two runs can be compared bit for bit.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opd_jax.errors import InputError


def _is_number(value: Any) -> bool:
  return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_object(value: Any) -> bool:
  return isinstance(value, dict)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: value is None or (isinstance(value, list) and all(map(fits, value)))


# What the readers of a row rely on, where it has the field: (which fields, what they are in words, how to tell).
_FIELDS = {
  "metrics.jsonl": (
    (re.compile(".*_by_position"), "a list of numbers", _list_of(_is_number)),
    (re.compile("compiles_new"), "a list of objects", _list_of(_is_object)),
  ),
  "eval.jsonl": (
    (re.compile("set|model"), "text", _is_text),
    (re.compile("pass_at.*"), "an object", _is_object),
    (re.compile(".*"), "a number", _is_number),
  ),
  "samples.jsonl": (
    (re.compile("kl"), "a list of numbers", _list_of(_is_number)),
    (re.compile("tokens"), "a list of texts", _list_of(_is_text)),
    (re.compile("k|temperature"), "a number", _is_number),
  ),
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """A full disk or a read-only folder is the user's to mend: one line instead of a traceback."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror or error}; free some space or choose another --workdir"
    ) from error


def replace_file(path: Path, content: str | bytes) -> None:
  """Puts `content` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  data = content.encode() if isinstance(content, str) else content
  with writing(path):
    try:
      with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
  """Raises InputError for what is there and is no file: from a pipe one would read for ever."""
  if path.exists() and not path.is_file():
    raise InputError(f"{path} is no file: move it away, or choose another --workdir")


def plain(value: Any) -> Any:
  """`value` as JSON types: array scalars become numbers, arrays lists, and a number that is not finite null."""
  if hasattr(value, "tolist"):  # numpy and jax, scalars and arrays: exact, float32 included
    value = value.tolist()
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return value


def encode_row(row: Mapping[str, Any]) -> str:
  """One line of strict JSON, newline included. `row` must hold an integer `step`."""
  row = plain(row)
  if type(row.get("step")) is not int:
    raise TypeError(f"a row needs an integer `step`, not {row.get('step')!r}")
  return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of a file, [] where there is none. A torn last line is left out.

  Raises InputError, with the line number, for any other line that is not an object with an integer `step`.
  """
  return [row for row, _ in _parse(path)]


def drop_rows_after(path: Path, step: int) -> list[dict[str, Any]]:
  """Cuts a file back to the rows with `row["step"] <= step`, atomically, and returns those.

  The bytes of the rows that stay are untouched, and so is the whole file where nothing has to go.
  """
  kept = [(row, line) for row, line in _parse(path) if row["step"] <= step]
  content = b"".join(line + b"\n" for _, line in kept)
  if path.exists() and path.read_bytes() != content:
    replace_file(path, content)
  return [row for row, _ in kept]


def _parse(path: Path) -> list[tuple[dict[str, Any], bytes]]:
  check_file(path)
  try:
    lines = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  pairs = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      # What follows the last newline was cut off while it was written. A row that lacks nothing but its newline
      # parses, and is kept: no proper prefix of a JSON object is one.
      if number == len(lines):
        continue
      raise InputError(f"{path} line {number} is not JSON; mend or delete that line") from error
    if not isinstance(row, dict) or type(row.get("step")) is not int:
      raise InputError(f"{path} line {number} is not an object with an integer `step`; mend or delete that line")
    if unfit := _unfit(row, path.name):
      raise InputError(f"{path} line {number}: {unfit}; mend or delete that line")
    pairs.append((row, line))
  return pairs


def _unfit(row: Mapping[str, Any], file: str) -> str:
  """What is wrong with a field of a row; "" where nothing is."""
  for name, value in row.items():
    if type(value) in (int, float) and not _is_number(value):
      return f"`{name}` is no number that a run writes"
    for fields, kind, fits in _FIELDS.get(file, ()):
      if fields.fullmatch(name):
        if not fits(value):
          return f"`{name}` is not {kind}"
        break
  return ""
