"""The tensors of a checkpoint folder: which file holds which, and windows of them read from disk.

Only the window that is asked for is read; that is what lets a shard of a large model be loaded on a small host. A file
is mapped into memory while a window of it is read and no longer: the pages of a mapping stay resident once touched, so
a file held open would cost its size beside the arrays made from it.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from opd_jax.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "BF16", "F16")


class Tensors:
  """Read access to the tensors of one or several safetensors files, whose headers are read once."""

  def __init__(self, files: Iterable[Path]):
    """Raises InputError for a file that is missing, truncated or foreign, and where two files hold one name."""
    self._holder, self._header = {}, {}
    for path in files:
      with _opened(path) as file:
        for key in file.keys():
          if key in self._holder:
            raise InputError(f"{path} and {self._holder[key]} both hold the tensor `{key}`")
          found = file.get_slice(key)
          self._holder[key], self._header[key] = path, (tuple(found.get_shape()), found.get_dtype())

  @property
  def keys(self) -> set[str]:
    return set(self._holder)

  def file(self, key: str) -> Path:
    """The file that holds a tensor."""
    return self._holder[key]

  def check(self, key: str, shape: tuple[int, ...]) -> None:
    """Raises InputError where a tensor has another shape, or a dtype that is no floating point the decoder reads."""
    path, (found, dtype) = self._holder[key], self._header[key]
    if found != shape:
      raise InputError(
        f"{path}: `{key}` has shape {list(found)}, but config.json asks for {list(shape)}: they do not belong together"
      )
    if dtype not in _DTYPES:
      raise InputError(f"{path}: `{key}` has dtype {dtype}; only {', '.join(_DTYPES)} are supported")

  def read(self, key: str, window: tuple[slice, ...]) -> np.ndarray:
    """A window of a tensor in the dtype of the file (bfloat16 through ml_dtypes)."""
    with _opened(self._holder[key]) as file:
      return file.get_slice(key)[window]


def find_tensors(folder: Path) -> Tensors:
  """Those of `model.safetensors`, or of the files that `model.safetensors.index.json` names.

  Raises InputError for a folder without either, a bad index, a missing, truncated or foreign file.
  """
  return Tensors(_files(folder))


def _files(folder: Path) -> list[Path]:
  if (folder / SINGLE).is_file():
    return [folder / SINGLE]
  if not (folder / INDEX).is_file():
    raise InputError(f"{folder}: no {SINGLE} and no {INDEX}; only safetensors checkpoints are read")
  weight_map = read_json(folder / INDEX).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f"{folder / INDEX}: no `weight_map` from tensor names to files")
  names = sorted(set(map(str, weight_map.values())))
  for name in names:
    if Path(name).name != name or name in ("", ".", ".."):
      raise InputError(f"{folder / INDEX}: names the file `{name}`, which is not a file of this folder")
  return [folder / name for name in names]


@contextlib.contextmanager
def _opened(path: Path):
  if not os.path.isfile(path):  # pathlib raises for a name that is too long
    raise InputError(f"{path}: file missing, although {INDEX} names it; download the checkpoint again")
  try:
    file = safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:  # the latter where the system cannot map what is there
    raise InputError(
      f"{path}: not a whole safetensors file ({error}); truncated, or a Git LFS pointer? Download it again"
    ) from None
  with file:
    yield file


def read_json(path: Path) -> dict:
  """A JSON object from a file. Raises InputError with the position of a mistake."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError, OSError) as error:
    raise InputError(f"{path}: not valid JSON ({error})") from None
  if not isinstance(content, dict):
    raise InputError(f"{path}: not a JSON object")
  return content
