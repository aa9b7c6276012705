"""Every command of the README, in its order, as it stands there: on the tiny pair in place of the models it names, and
with fewer and shorter steps."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMPILED_SOON

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)

SMALL = (
  "--config.steps=2 --config.rollout.prompts_per_step=8 --config.rollout.max_prompt=64 --config.horizon.max=16 "
  "--config.horizon.start=8 --config.horizon.increment=8 --config.horizon.every=1 --config.horizon.buckets=8,16 "
  "--config.eval.batch=8 --config.eval.prompts=8"
)
# What the README's own names stand for here.
STANDS_FOR = {
  '"Qwen/Qwen3-1.7B"': '"{pair}/student"',
  '"Qwen/Qwen3-8B"': '"{pair}/teacher"',
  '"gsm8k/train.jsonl"': '"{pair}/questions.jsonl"',
  '"gsm8k/test.jsonl"': '"{pair}/questions.jsonl"',
}


def commands(block: str) -> list[str]:
  """The lines of a bash block, continued ones joined, comments dropped."""
  joined = block.replace("\\\n", " ")
  return [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip() and line[0] != "#"]


ALL = [command for language, block in BLOCKS if language == "bash" for command in commands(block)]


@pytest.fixture(scope="module")
def folder(tiny_pair, tmp_path_factory):
  """A user's folder: their config and their prompts."""
  path = tmp_path_factory.mktemp("readme")
  rows = [json.loads(line) for line in (tiny_pair / "prompts.jsonl").read_text().splitlines()]
  lines = (json.dumps({"question": row["prompt"], "answer": f"#### {i}"}) + "\n" for i, row in enumerate(rows))
  (tiny_pair / "questions.jsonl").write_text("".join(lines))
  (config,) = [block for language, block in BLOCKS if language == "python" and "my_run.py" in block]
  for ours, here in STANDS_FOR.items():
    assert ours in config
    config = config.replace(ours, here.format(pair=tiny_pair))
  (path / "my_run.py").write_text(config)
  return path


def test_each_command_is_one_that_is_tested_here():
  known = ("make quickstart", "make test", "make compare", "pip install -r requirements-", "python -m opd_jax.")
  for command in ALL:
    assert command.startswith((*known, "XLA_FLAGS=")), command


def test_the_commands_on_ones_own_models(folder):
  for command in (c for c in ALL if "opd_jax." in c):
    words = shlex.split(command)
    environment = {**os.environ, "XLA_FLAGS": COMPILED_SOON, "PYTHONPATH": str(ROOT)}
    while "=" in words[0]:
      name, _, value = words.pop(0).partition("=")
      environment[name] = f"{value} {COMPILED_SOON}"
    assert words[:2] == ["python", "-m"]
    if "--config=my_run.py" in words:
      words += shlex.split(SMALL)
    done = subprocess.run(
      [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
  assert (folder / "runs" / "mine" / "report.html").exists() and (folder / "runs" / "mesh").exists()


def test_the_lines_from_python(folder, monkeypatch):
  (code,) = [block for language, block in BLOCKS if language == "python" and "generate(" in block]
  monkeypatch.chdir(folder)
  names = {}
  exec(code, names)  # after the commands above, which leave runs/mine-hf
  assert names["rollout"].tokens_bs.shape == (1, 3 + 64)


def test_make_targets_and_requirement_files_exist():
  make = shutil.which("make")
  for command in ALL:
    if command.startswith("make") and make:
      done = subprocess.run([make, "-n", command.split()[1]], cwd=ROOT, capture_output=True, text=True)
      assert done.returncode == 0, done.stderr
    if command.startswith("pip"):
      assert (ROOT / command.split()[3]).is_file(), command


def test_links_lead_somewhere():
  for target in re.findall(r"\]\(([^)#:]+)\)", README):
    assert (ROOT / target).exists(), target


def test_quickstart_closes_the_gap(tmp_path):
  """The main job as `make quickstart` runs it."""
  (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "configs/quickstart.py" in line]
  words = shlex.split(line.replace("$(BIN)/python", sys.executable).replace("runs/quickstart", str(tmp_path / "run")))
  environment = {**os.environ, "XLA_FLAGS": "", "OPD_JAX_CACHE": str(ROOT / ".cache" / "embedded")}
  environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"
  done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(row) for row in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
  marks = {(row["model"], row["step"]): row["accuracy"] for row in rows}
  before, after, teacher = marks["student", 0], marks["student", 40], marks["teacher", 0]
  assert teacher > 0.99 and after >= 0.95 * teacher and after >= before + 0.3
  for word in ("before", "after", "teacher"):
    assert word in done.stdout
