"""Starts launch scripts as a user would: from the root of the repository, in an environment without settings."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLOUD = ("gcloud", "gcsfuse", "kubectl", "sudo", "xpk")  # what reaches out of this machine


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
  """Without XLA_FLAGS and JAX_*, but for what compiles sooner; the programs of CLOUD are stubs that append their
  arguments to CALLS and fail."""
  stubs = tmp_path / "stubs"
  stubs.mkdir()
  for name in CLOUD:
    write_program(stubs / name, f'echo "{name} $*" >>"$CALLS"; exit 99')
  return {
    "PATH": f"{stubs}:{os.environ['PATH']}",
    "HOME": str(tmp_path),
    "TMPDIR": "/tmp",
    "CALLS": str(tmp_path / "calls"),
    **{name: os.environ[name] for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")},
  }


@pytest.fixture
def launch(environment):
  """launch(SCRIPT, ARGUMENT...) -> CompletedProcess with text."""

  def run(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    options = {"cwd": ROOT, "env": environment, "timeout": 300, **options}
    return subprocess.run([f"launch/{script}", *arguments], capture_output=True, text=True, **options)

  return run


def write_program(path: Path, body: str) -> Path:
  """An executable bash script."""
  path.write_text(f"#!/usr/bin/env bash\n{body}\n")
  path.chmod(0o755)
  return path
