"""Finished runs of a study in one JSON file: what is in it is not run again, whatever stopped the study.

    {"settings": {...}, "finished": true, "runs": {"sampled seed 3": {...}, ...}}

Only what was measured is kept; means, intervals and verdicts are made anew from it, once the study is finished.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opd_jax.errors import InputError
from opd_jax.telemetry.rows import plain, replace_file


class Ledger(Mapping[str, Any]):
  """The runs of a file, by name.

  Args:
    path: made with the first run.
    settings: JSON values of everything that decides a run's numbers beside its name.

  Raises InputError where the file holds runs of other settings, or is not readable.
  """

  def __init__(self, path: Path, settings: Mapping[str, Any]):
    self._path, self._settings, self._runs = path, plain(settings), {}
    if not path.exists():
      return
    saved = read(path)
    if saved["settings"] != self._settings:
      raise InputError(f"{path} holds runs of other settings: move it away, or choose another --out")
    self._runs = saved["runs"]

  def put(self, name: str, run: Mapping[str, Any]) -> None:
    """Adds a finished run."""
    self._runs[name] = plain(run)
    self._write(finished=False)

  def arrange(self, names: Iterable[str]) -> None:
    """Puts runs that ended in any order into this one, those not named after them."""
    self._runs = {name: self._runs[name] for name in [*(name for name in names if name in self._runs), *self._runs]}

  def finish(self) -> None:
    """Says that no run of the study is missing."""
    self._write(finished=True)

  def _write(self, finished: bool) -> None:
    """The file, whole or not at all."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": self._settings, "finished": finished, "runs": self._runs}
    replace_file(self._path, json.dumps(content, indent=1) + "\n")

  def __getitem__(self, name: str) -> Any:
    return self._runs[name]

  def __iter__(self):
    return iter(self._runs)

  def __len__(self) -> int:
    return len(self._runs)


def read(path: Path) -> dict[str, Any]:
  """{"settings", "finished", "runs"} of a file. Raises InputError where it is not one of ours."""
  try:
    saved = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read as JSON ({error}): move it away and run its study again") from error
  if not isinstance(saved, dict) or not {"settings", "finished", "runs"} <= saved.keys():
    raise InputError(f"{path} holds no runs of a study: move it away and run the study again")
  return saved
