"""A teacher in int8: what a run prints and writes about it, and that the numbers are those of the dense definition."""

import json
import re

import jax
import numpy as np
import pytest

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.training import load_teacher, open_run, train

FLAGS = ["horizon.kind=full", "horizon.max=8", "horizon.buckets=8", "steps=2", "teacher.int8=true"]
MESHES = {"cube": (2, 2, 2), "one": (1, 1, 1)}


def opened(config, workdir, shape, *flags):
  mesh = [f"mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), shape)]
  read = load_config(config, [f"--config.{flag}" for flag in (*FLAGS, *mesh, *flags)])
  return open_run(read, workdir, jax.devices()[: int(np.prod(shape))])


def log_softmax(logits_tv):
  logits_tv = np.asarray(logits_tv, np.float64)
  shifted_tv = logits_tv - logits_tv.max(-1, keepdims=True)
  return shifted_tv - np.log(np.exp(shifted_tv).sum(-1, keepdims=True))


def test_the_kl_it_costs_is_that_of_whole_distributions_on_the_first_prompts(tiny_config, tmp_path):
  run = opened(tiny_config, tmp_path, (1, 1, 1))
  teacher, metrics = load_teacher(run)
  full, vocab = models.load(run.teacher_path, dtype="float32"), run.pair.vocab_size
  kl = []
  for i in run.stream.take(0, run.config.rollout.prompts_per_step):
    ids = run.prompts.token_ids[i]
    log_p, log_q = (log_softmax(models.logits(model, [ids[:-1]])[0, :, :vocab]) for model in (full, teacher))
    kl += list((np.exp(log_p) * (log_p - log_q)).sum(-1))
  assert metrics["teacher_int8_kl"] == pytest.approx(np.mean(kl), rel=1e-3)
  assert metrics["teacher_int8_kl_max"] == pytest.approx(np.max(kl), rel=1e-3)
  assert 0 < metrics["teacher_int8_kl"] < metrics["teacher_int8_kl_max"]


def test_a_run_trains_says_so_and_is_the_same_on_a_mesh(tiny_pair, tiny_config, tmp_path, capsys):
  marks = [f"eval.path={tiny_pair}/prompts.jsonl", "eval.prompts=8", "eval.batch=8"]
  rows, printed = {}, {}
  for name, shape in MESHES.items():
    run = opened(tiny_config, tmp_path / name, shape, *(marks if name == "one" else []))
    train(run)
    # The plan's abstract teacher is the run's: a program compiled ahead is the one that is called.
    compiled = [(c.program, c.bucket) for c in run.table.compiles]
    assert compiled.count(("rollout", 8)) == compiled.count(("update", 8)) == 1
    assert compiled.count(("decode_layout", 0)) == compiled.count(("evaluate_greedy", 8)) + (name == "cube")
    rows[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    printed[name] = [line for line in capsys.readouterr().out.splitlines() if "int8" in line]
  number = r"[\d.e-]+"
  line = rf"teacher in int8: KL\(full \|\| int8\) {number} nats a token on the first prompts, at most {number}"
  for name in MESHES:
    (said,) = printed[name]
    assert re.fullmatch(line, said.strip()), said
    first, second = rows[name]
    assert "teacher_int8_kl" in first and "teacher_int8_kl" not in second
    assert second["unplanned_compiles"] == 0
  for ours, theirs in zip(rows["cube"], rows["one"], strict=True):
    assert ours["tokens"] == theirs["tokens"]
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
  for name in ("teacher_int8_kl", "teacher_int8_kl_max"):
    # A KL of nearly equal distributions is a small difference of float32 numbers near 1.
    np.testing.assert_allclose(rows["cube"][0][name], rows["one"][0][name], rtol=1e-2)
