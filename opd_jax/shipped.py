"""Where the configs that come with opd_jax are: `configs/` beside the package in the source tree, inside it where it is
installed."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def find_config(path: str) -> str:
  """A config file as it was named; where `configs/NAME.py` is not here, the one that comes with opd_jax."""
  folder, name = os.path.split(path)
  shipped = CONFIGS / name
  return str(shipped) if folder == "configs" and not os.path.isfile(path) and shipped.is_file() else path
