"""The data sets that tensorflow-datasets knows how to make, found by name without TensorFlow.

`tfds.builder(name)` imports hundreds of builders and gives up at the first that wants TensorFlow. Here their names are
read from the files' text, and only the one that is asked for is imported.
"""

import contextlib
import functools
import importlib
import io
import re
from pathlib import Path

from opd_jax.data.rows import FILE_ENDINGS, look_up
from opd_jax.errors import InputError, nearest

_NAME = re.compile(r"([A-Za-z]\w*)(?:/([\w.+-]+))?", re.ASCII)
_CLASS = re.compile(r"^class (\w+)\(([^)]*)\)", re.MULTILINE)
_SHOWN = 20  # names of an error
_WITHOUT_BUILDERS = ("core", "scripts", "testing", "proto")


def is_name(text: str) -> bool:
  """Whether it may name a set, `NAME` or `NAME/CONFIG`, rather than a file."""
  return bool(_NAME.fullmatch(text)) and not text.endswith(FILE_ENDINGS)


def prepare_named(text: str, fields: tuple[str, ...], out: Path) -> str:
  """Downloads a set, unless it is there, and makes it in array_record.

  Args:
    text: `NAME` or `NAME/CONFIG`.
    fields: dotted paths that the set must have.
    out: the folder that prepared sets stand in; downloads are kept in `out/downloads`.

  Returns:
    The set's folder in `out`.

  Raises:
    InputError: no such name, config or field, a missing package (TensorFlow for some), or a download that fails.
  """
  name, config = _NAME.fullmatch(text).groups()
  known = known_builders()
  if name not in known:
    raise InputError(
      f"{text} is neither a file nor a folder, and tensorflow-datasets has no set `{name}`{nearest(name, known)}"
    )
  module, builder_class = known[name]
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # of what it cannot import TFDS prints a banner
      make = getattr(importlib.import_module(module), builder_class)
      if config:
        _check_config(name, config, tuple(make.builder_configs))
      builder = make(data_dir=out, config=config, file_format="array_record")
      for field in fields:
        look_up(_names(builder.info.features), field, f"tensorflow-datasets' {text}")
      builder.download_and_prepare()
  except InputError:
    raise
  except ImportError as error:
    package = error.name or str(error)
    remedy = "pip install tensorflow, the extra `tensorflow` of opd_jax" if "tensorflow" in package else "install it"
    raise InputError(
      f"to prepare {text}, tensorflow-datasets needs {package}, which is not here: {remedy}; only preparing needs it"
    ) from error
  except Exception as error:  # a builder is somebody's program, and its data somebody's server
    reason = next(iter(str(error).strip().splitlines()), "no reason given")
    raise InputError(f"tensorflow-datasets cannot prepare {text}: {type(error).__name__}: {reason}") from error
  return str(builder.data_path)


@functools.cache
def known_builders() -> dict[str, tuple[str, str]]:
  """{name: (module, class)} of every set that tensorflow-datasets can make."""
  import tensorflow_datasets as tfds

  root, classes = Path(tfds.core.tfds_path()), []
  for file in sorted(root.glob("*/**/*.py")):
    place = file.relative_to(root)
    if place.parts[0] not in _WITHOUT_BUILDERS and not file.stem.endswith("_test"):
      for name, bases in _CLASS.findall(file.read_text(encoding="utf-8")):
        classes.append((place, name, {base.strip().rpartition(".")[2] for base in bases.split(",")}))
  builders = {name for _, name, bases in classes if any(base.endswith("Builder") for base in bases)}
  known = {}
  for place, builder_class, bases in classes:
    if builder_class.startswith("_") or not builders & {builder_class, *bases}:
      continue
    # Newer sets have a class `Builder` in a folder of their name, older ones their name in camel case.
    name = place.parent.name if builder_class == "Builder" else tfds.core.naming.camelcase_to_snakecase(builder_class)
    known[name] = ".".join([root.name, *place.with_suffix("").parts]), builder_class
  return known


def _check_config(name: str, config: str, known: tuple[str, ...]) -> None:
  """Raises InputError, the nearest named, where a set has no such config."""
  if config in known:
    return
  if not known:
    raise InputError(f"tensorflow-datasets' `{name}` has no configs: give {name} alone")
  more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
  raise InputError(
    f"tensorflow-datasets' `{name}` has no config `{config}`{nearest(config, known)}; known: "
    f"{', '.join(known[:_SHOWN])}{more}"
  )


def _names(features) -> dict:
  """The fields of a set as a nested dict of nothing."""
  return {name: _names(inner) if hasattr(inner, "items") else None for name, inner in features.items()}
