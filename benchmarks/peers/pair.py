"""The random pair of models and the prompts that sampler and step are measured with, made once."""

import dataclasses
import json
import shutil
from pathlib import Path

from benchmarks.peers import environments, harness

ROWS = 8  # completions of a step


@dataclasses.dataclass(frozen=True)
class Pair:
  """Folders of two Hugging Face checkpoints, and prompts of 32 ids each."""

  student: str
  teacher: str
  prompts: list[list[int]]


def make() -> Pair:
  folder = environments.folder() / "pair"
  if not (folder / "prompts.json").exists():  # the last file that is written
    shutil.rmtree(folder, ignore_errors=True)
    harness.run_worker("opd_jax", "make_pair.py", {"folder": str(folder)})
  return Pair(str(folder / "student"), str(folder / "teacher"), _read(folder / "prompts.json"))


def _read(path: Path) -> list[list[int]]:
  return json.loads(path.read_text())
