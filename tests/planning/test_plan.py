"""The command, as a shell sees it: exit status, stdout, one line for bad input; and the files that come with it."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.distributed import make_mesh
from opd_jax.planning.subject import make_table, read_architectures
from opd_jax.training.programs import list_programs
from tests.conftest import COMPILED_SOON

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py"))


def plan(*arguments):
  environment = {**os.environ, "XLA_FLAGS": COMPILED_SOON}
  command = [sys.executable, "-m", "opd_jax.plan", *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


ONE_BUCKET = ["--config.horizon.kind=full", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]


def check_shape(answer):
  assert list(answer) == [
    "topology",
    "chips",
    "hbm_bytes_per_chip",
    "programs",
    "memory_bytes_per_chip",
    "fits",
    "advice",
  ]
  assert list(answer["memory_bytes_per_chip"]) == ["student", "optimizer", "teacher", "cache", "temp"]
  for row in answer["programs"]:
    assert list(row) == [
      "name",
      "bucket",
      "compile_seconds",
      "argument_bytes",
      "temp_bytes",
      "flops",
      "collectives",
      "predicted_seconds",
    ]
    assert row["compile_seconds"] > 0 and row["temp_bytes"] > 0
    assert (row["flops"] > 0) == (row["name"] != "decode_layout")


def test_json_is_all_of_stdout_and_agrees_with_the_compiler(tiny_config):
  done = plan(f"--config={tiny_config}", "--topology=cpu:8", "--json", *ONE_BUCKET)
  assert done.returncode == 0, done.stderr
  answer = json.loads(done.stdout)
  check_shape(answer)
  assert answer["topology"] == "cpu:8" and answer["chips"] == 8 and answer["fits"] is True
  assert sum(answer["memory_bytes_per_chip"].values()) <= answer["hbm_bytes_per_chip"]
  assert all(size > 0 for size in answer["memory_bytes_per_chip"].values())

  config = load_config(tiny_config, ONE_BUCKET)
  mesh, architectures = make_mesh((2, 2, 2), jax.devices()[:8]), read_architectures(config)
  table = make_table(config, architectures, mesh)
  listed = list_programs(config, architectures, mesh)
  assert [(row["name"], row["bucket"]) for row in answer["programs"]] == [(p.label, p.bucket) for p in listed]
  for row, program in zip(answer["programs"], listed, strict=True):
    memory = table.compile(program.name, program.bucket, *program.arguments).memory_analysis()
    assert row["argument_bytes"] == pytest.approx(memory.argument_size_in_bytes, abs=256)
    assert row["temp_bytes"] >= memory.temp_size_in_bytes
    assert row["collectives"] and row["predicted_seconds"] is None


def test_a_run_that_fits_nowhere_exits_1_and_says_so(tiny_config):
  """Dense attention over 2^18 tokens is 256 GiB a head and row; compiling for it allocates nothing."""
  horizon = ["--config.horizon.kind=full", f"--config.horizon.max={2**18}", f"--config.horizon.buckets={2**18}"]
  done = plan(f"--config={tiny_config}", "--topology=cpu:1", *horizon)
  assert done.returncode == 1, done.stderr
  assert "does not fit" in done.stdout and "shorten the horizon" in done.stdout


@pytest.mark.parametrize(
  "arguments, words",
  [
    ([], "--topology is missing"),
    (["--topology=v5e:4x5x6"], "did you mean"),
    (["--topology=cpu:8", "--config.mesh.tensor=3"], "does not multiply"),
    (["--topology=cpu:8", "--config.rollout.prompts_per_step=9"], "does not divide"),
    (["--topology=cpu:8", "--config.mesh.tensor=8"], "query heads"),
    (["--topology=cpu:8", "--config.student.path=nobody/nothing"], "nobody/nothing"),
  ],
)
def test_bad_input_is_one_line_and_exit_2(tiny_config, arguments, words):
  done = plan(f"--config={tiny_config}", *arguments)
  assert done.returncode == 2 and done.stdout == ""
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  assert len(lines) == 1 and words in lines[0] and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: no TPU compiler")
@pytest.mark.parametrize("slices", [1, 2])
def test_a_tpu_that_is_not_here(tiny_config, slices):
  mesh = ["--config.mesh.data=2", "--config.mesh.tensor=2"]
  arguments = ["--topology=v5e:2x2", f"--slices={slices}", "--json", "--config.horizon.kind=full", *mesh]
  done = plan(f"--config={tiny_config}", *arguments)
  assert done.returncode == 0, done.stderr
  answer = json.loads(done.stdout)
  check_shape(answer)
  assert answer["chips"] == 4 * slices and answer["hbm_bytes_per_chip"] == int(15.75 * 2**30)
  assert all(row["predicted_seconds"] > 0 for row in answer["programs"] if row["name"] != "decode_layout")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_shrink(path):
  config, small = load_config(str(path)), load_config(f"{path}:runlocal") if "MACHINES" in path.read_text() else None
  assert "python -m opd_jax." in path.read_text() and config.steps > 0
  if small:
    assert small.student.path.startswith("arithmetic:") and small.rows * small.horizon.max <= 2048
    read_architectures(config)


@pytest.mark.parametrize("machine, chips", [("v5e-16", 16), ("v5e-256", 256), ("v5p-128", 128), ("h200-8", 8)])
@pytest.mark.parametrize("path", [p for p in CONFIGS if "MACHINES" in p.read_text()], ids=lambda path: path.stem)
def test_shipped_meshes_divide(path, machine, chips):
  from opd_jax.planning.subject import abstract_mesh, check_mesh

  config = load_config(f"{path}:{machine}")
  check_mesh(config, read_architectures(config), abstract_mesh(config, chips))
  assert config.rows == load_config(str(path)).rows  # the machine changes no number of the run


@pytest.mark.parametrize(
  "name, parameters",
  [
    # As the hub counts them in the published checkpoints; a tied head once.
    ("Qwen3-1.7B", 1_720_574_976),
    ("Qwen3-8B", 8_190_735_360),
    ("Qwen3-8B-Base", 8_190_735_360),
    ("Qwen3-32B", 32_762_123_264),
    ("Qwen2.5-0.5B", 494_032_768),
    ("Qwen2.5-7B-Instruct", 7_615_616_512),
    ("OpenThinker3-7B", 7_615_616_512),
    ("DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
    ("JustRL-DeepSeek-1.5B", 1_777_088_000),
    ("OpenMath-Nemotron-1.5B", 1_543_714_304),
    ("JustRL-Nemotron-1.5B", 1_543_714_304),
  ],
)
def test_shipped_architectures_have_the_published_size(name, parameters):
  architecture = models.read_architecture(ROOT / "configs" / "models" / name)
  assert sum(math.prod(p.shape) for p in models.parameter_table(architecture).values()) == parameters
