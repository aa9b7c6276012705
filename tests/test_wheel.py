"""The package as it is installed: all of it but tests, with the configs, and it runs where there is no source tree."""

import contextlib
import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling import build
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.conftest import COMPILED_SOON

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

# The command as a shell calls it, then every module: the commands share the names of flags.
PROGRAM = """
import importlib, pathlib, pkgutil, runpy, sys
sys.argv = ["opd_jax.train", "--help"]
try:
  runpy.run_module("opd_jax.train", run_name="__main__", alter_sys=True)
except SystemExit as stop:
  assert stop.code == 0, stop.code
import opd_jax
names = [module.name for module in pkgutil.walk_packages(opd_jax.__path__, "opd_jax.")]
for name in names:
  importlib.import_module(name)
from opd_jax.command_line import load_config
from opd_jax.shipped import CONFIGS
assert pathlib.Path(opd_jax.__file__).parent == CONFIGS.parent and (CONFIGS / "models/Qwen3-1.7B/config.json").is_file()
print(f"{len(names)} modules, {load_config('configs/quickstart.py:late').student.path}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("wheel")
  with contextlib.chdir(ROOT):
    return folder / build.build_wheel(str(folder))


def listed(path: Path) -> list[str]:
  """The lines of a requirements file, without comments and options."""
  return [line for line in path.read_text().splitlines() if line and line[0] not in "#- "]


def asked(text: str) -> tuple[str, str]:
  """Name and versions of a requirement."""
  requirement = Requirement(text)
  return canonicalize_name(requirement.name), str(requirement.specifier)


def test_it_holds_every_module_and_config_and_no_test(wheel):
  names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
  modules = {str(path.relative_to(ROOT)) for path in (ROOT / "opd_jax").rglob("*.py")}
  tests = {name for name in modules if re.search(r"(_test|/conftest)\.py$", name)}
  configs = {f"opd_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
  configs |= {f"opd_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("config.json")}
  assert tests and configs and names >= (modules - tests) | configs
  assert not names & tests and not any("__pycache__" in name or name.startswith("tests") for name in names)


def test_it_asks_for_what_requirements_txt_asks_for(wheel):
  with zipfile.ZipFile(wheel) as file:
    (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
    told = email.message_from_bytes(file.read(metadata))
  needed = {asked(text) for text in told.get_all("Requires-Dist") if "extra ==" not in text}
  assert needed == {asked(line) for line in listed(ROOT / "requirements.txt")}
  assert all(bound.startswith(">=") for _, bound in needed)
  assert told["Requires-Python"] == ">=3.11" and told["License-Expression"] == "Apache-2.0"


def test_it_runs_without_the_source_tree(wheel, tmp_path):
  zipfile.ZipFile(wheel).extractall(tmp_path / "site")
  environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XLA_FLAGS": COMPILED_SOON}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert " modules, arithmetic:late@0/student" in done.stdout, done.stdout
  assert "--workdir" in done.stdout and "runs/quickstart" in done.stdout  # help is not an error


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_locks_pin_what_is_asked_for_by_hash_and_name_no_host(lock):
  text = lock.read_text()
  pins = dict(asked(line.rstrip("\\ ")) for line in listed(lock))
  assert all(re.fullmatch(r"==[\w.!+]+", version) for version in pins.values())
  assert text.count("--hash=sha256:") >= len(pins)
  assert "://" not in text and "--index" not in text and "--find-links" not in text
  names = ["requirements.txt"] + (["requirements-dev.txt"] if "dev" in lock.stem else [])
  for line in (line for name in names for line in listed(ROOT / name)):
    name, bound = asked(line)
    assert SpecifierSet(bound).contains(pins[name].removeprefix("==")), line


def test_there_are_locks_for_both_versions_of_python():
  assert [lock.name for lock in LOCKS] == ["py311-dev.txt", "py311.txt", "py312-dev.txt", "py312.txt"]
