"""Rows of a data file as dictionaries, one after the other, each with the words by which an error names it.

Three formats: JSONL (one object a line), parquet, and a folder that tensorflow-datasets prepared. TensorFlow itself is
never imported: `as_data_source` reads array_record files without it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_jax.errors import InputError, nearest

FILE_ENDINGS = (".jsonl", ".parquet")
_LONGEST_LINE = 16 << 20  # bytes
_READERS_NAMED = "a .jsonl file, a .parquet file, or a folder prepared by tensorflow-datasets"


def locate(path: str | os.PathLike) -> tuple[Path, str]:
  """A data file or folder that exists, and the split that is asked for; "" for the usual one and for files.

  Args:
    path: as `read_rows` takes it.

  Raises:
    InputError: there is no such file or folder (the nearest one beside it is named).
  """
  # os.path says no where pathlib raises: a name too long for the system, the home of nobody.
  text = os.fspath(path)
  file = Path(os.path.expanduser(text))
  folder, colon, split = text.rpartition(":")
  if colon and not os.path.exists(file) and os.path.isdir(os.path.expanduser(folder)):
    return Path(os.path.expanduser(folder)), split
  if not os.path.exists(file):
    beside = os.listdir(file.parent) if os.path.isdir(file.parent) else []
    raise InputError(
      f"{text} does not exist{nearest(file.name, beside)}; give {_READERS_NAMED} (python -m opd_jax.prepare makes one "
      "of a name such as gsm8k)"
    )
  if not file.is_dir() and file.suffix not in FILE_ENDINGS:
    raise InputError(f"cannot tell what {text} is from its ending `{file.suffix}`; give {_READERS_NAMED}")
  if not file.is_dir() and not file.is_file():
    raise InputError(f"{text} is a pipe or a device; give {_READERS_NAMED}")
  return file, ""


def read_rows(path: str | os.PathLike, fields: Sequence[str]) -> Iterator[tuple[str, dict]]:
  """Reads a data file lazily.

  Args:
    path: `.jsonl`, `.parquet`, or a folder prepared by tensorflow-datasets, as `FOLDER` (its train split, or the only
      one) or `FOLDER:split`.
    fields: dotted paths that will be looked up; formats that can skip other columns do.

  Yields:
    (place, row), where `place` is how an error names the row: "FILE, line 3".

  Raises:
    InputError: the file or the split is missing, unreadable or malformed.
  """
  file, split = locate(path)
  if file.is_dir():
    return _tfds_rows(file, split)
  return _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file, fields)


def split_sizes(folder: str | os.PathLike) -> dict[str, int]:
  """{split: rows} of a folder prepared by tensorflow-datasets. Raises InputError where it is none."""
  return {name: split.num_examples for name, split in _tfds_builder(Path(folder)).info.splits.items()}


def look_up(row: dict, field: str, place: str) -> Any:
  """The value at a dotted path of a row; what TFDS gives in forms of its own becomes what JSON would have.

  Raises:
    InputError: no such field (those present and the nearest are named), or bytes that are not UTF-8.
  """
  value = row
  for name in [field] if field in row else field.split("."):  # a name may have a dot in it
    if not isinstance(value, dict) or name not in value:
      present = list(_dotted_names(row))
      raise InputError(f"{place} has no field `{field}`{nearest(field, present)}; fields present: {', '.join(present)}")
    value = value[name]
  try:
    return _as_json(value)
  except UnicodeDecodeError as error:
    raise InputError(f"{place}: `{field}` is not UTF-8 text") from error
  except RecursionError as error:
    raise InputError(f"{place}: `{field}` is nested too deeply") from error


def kind_of(value: Any) -> str:
  """A value's kind in the words of a data file, for errors."""
  names = {type(None): "null", dict: "an object", list: "a list", bool: "true or false", str: "text", int: "a number"}
  return names.get(type(value), type(value).__name__)


def _as_json(value: Any) -> Any:
  """TFDS gives text as bytes, a number as a numpy scalar, and a list of objects as an object of columns."""
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if isinstance(value, np.generic):
    return value.item()
  columns = list(value.values()) if isinstance(value, dict) else []
  if columns and all(isinstance(each, list | np.ndarray) and len(each) == len(columns[0]) for each in columns):
    return [dict(zip(value, map(_as_json, entries))) for entries in zip(*columns)]
  return value


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict]]:
  try:
    with file.open("rb") as content:
      for number, line in enumerate(iter(lambda: content.readline(_LONGEST_LINE + 1), b""), 1):
        place = f"{file}, line {number}"
        if len(line) > _LONGEST_LINE:
          raise InputError(f"{place} has more than {_LONGEST_LINE >> 20} MiB; each line must be one JSON object")
        try:
          text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
          row = json.loads(text) if text else None
        except UnicodeDecodeError as error:
          raise InputError(f"{place} is not UTF-8 (byte {error.start + 1} of it); save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
          ends = " (lines end with a carriage return alone: save them with newlines)" if b"\r" in line.strip() else ""
          raise InputError(f"{place} is not JSON: {error}; each line must be one JSON object{ends}") from error
        if not text:
          continue
        if not isinstance(row, dict):
          raise InputError(f"{place} is {kind_of(row)}; each line must be one JSON object")
        yield place, row
  except OSError as error:
    raise InputError(f"cannot read {file}: {error.strerror}") from error


def _parquet_rows(file: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with pq.ParquetFile(file) as table:
      # Only the columns asked for; where one is missing, all names, for the error that names them.
      present = table.schema_arrow.names
      columns = [field if field in present else field.split(".")[0] for field in fields]
      if not set(columns) <= set(present):
        columns = present
      number = 0
      for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist():
          number += 1
          yield f"{file}, row {number}", row
  except (pa.ArrowException, OSError, ValueError, ArithmeticError, MemoryError) as error:  # bytes, dates out of range
    raise InputError(f"cannot read {file} as parquet: {error}") from error


def _tfds_rows(folder: Path, split: str) -> Iterator[tuple[str, dict]]:
  builder = _tfds_builder(folder)
  known = list(builder.info.splits)
  split = split or (known[0] if len(known) == 1 else "train")
  if split not in known:
    raise InputError(f"{folder} has no split `{split}`{nearest(split, known)}; its splits: {', '.join(known)}")
  try:
    source = builder.as_data_source(split)
  except NotImplementedError as error:
    raise InputError(f"{folder} can only be read with TensorFlow; prepare it with file_format=array_record") from error
  except Exception as error:  # files of a split that are missing or cut short
    raise InputError(f"cannot read {folder}:{split}: {type(error).__name__}: {error}") from error
  for index in range(len(source)):
    place = f"{folder}:{split}, row {index + 1}"
    try:
      row = source[index]
    except Exception as error:  # of array_record, of protocol buffers, of a feature
      raise InputError(f"cannot read {place}: {type(error).__name__}: {error}") from error
    yield place, row


def _tfds_builder(folder: Path):
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # of JSON, of protocol buffers, of a feature that is none
    raise InputError(
      f"{folder} is a folder, but tensorflow-datasets cannot read it: {error}; of a folder of .jsonl or .parquet files "
      "python -m opd_jax.prepare makes one that it can read"
    ) from error


def _dotted_names(row: dict, prefix: str = "", depth: int = 8) -> Iterator[str]:
  for name, value in row.items():
    if isinstance(value, dict) and value and depth:
      yield from _dotted_names(value, f"{prefix}{name}.", depth - 1)
    else:
      yield prefix + name
