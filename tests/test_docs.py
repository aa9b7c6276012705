"""The pages of docs/: they build without a warning, links and fields that they name exist, and their code runs."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from opd_jax import command_line
from opd_jax import config as configs

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FOLLOWED = ("first_run", "from_python")  # line by line, in tests/test_newcomer.py and tests/test_api.py
BLOCKS = [
  pytest.param(language, block, id=f"{page.stem}-{at}")
  for page in PAGES
  if page.stem not in FOLLOWED
  for at, (language, block) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.S))
]
SECTIONS = {field.name for field in dataclasses.fields(configs.Config) if dataclasses.is_dataclass(field.default)}


def test_they_build(tmp_path):
  command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(tmp_path)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert all((tmp_path / f"{page.stem}.html").exists() for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_fields_exist(page):
  text = page.read_text()
  for target in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (page.parent / target).exists(), target
  for name in re.findall(r"`(\w+\.\w+)(?:=[^`]*| = [^`]*)?`", text):
    section, field = name.split(".")
    if section in SECTIONS and field not in ("py", "json", "jsonl", "md"):
      known = {each.name for each in dataclasses.fields(type(getattr(configs.Config, section)))}
      assert field in known, name


@pytest.mark.parametrize("language, block", BLOCKS)
def test_code_runs_and_commands_are_understood(language, block):
  if language == "python":
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  if language != "bash":
    return
  for line in block.replace("\\\n", " ").splitlines():
    words = [word for word in shlex.split(line, comments=True) if not word.startswith("XLA_FLAGS=")]
    if words[0] == "make":
      assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line
      continue
    assert words[:2] == ["python", "-m"] and (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), line
    spec, overrides, _ = command_line.split(words[3:])
    if spec:
      command_line.load_config(spec, overrides)  # raises for what it does not know
