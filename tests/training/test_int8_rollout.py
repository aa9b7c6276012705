"""Rollouts in int8: what the student writes, what the step says that costs, and what stays in full precision."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.data import pad_left
from opd_jax.distributed import fetch, place_rows
from opd_jax.rollout import Sampling, sample_completions
from opd_jax.training import open_run, train
from opd_jax.training.batch import Batch
from opd_jax.training.programs import Architectures, list_programs
from opd_jax.training.state import Frozen, init_state, make_optimizer
from tests.conftest import timeless_rows

BUCKET = 8
ONE, CUBE = (1, 1, 1), (2, 2, 2)
# Axes that a layer's weight is summed over in its product, after the axis of the layers.
SUMMED = {"query_nhd": 3, "key_khd": 3, "value_khd": 3, "output_dnh": (2, 3), "gate_fd": 2, "up_fd": 2, "down_df": 2}


def opened(config, workdir, shape=ONE, *flags):
  mesh = [f"mesh.{name}={size}" for name, size in zip(("data", "fsdp", "tensor"), shape)]
  flags = ["horizon.kind=full", f"horizon.max={BUCKET}", f"horizon.buckets={BUCKET}", *mesh, *flags]
  return open_run(load_config(config, [f"--config.{flag}" for flag in flags]), workdir, jax.devices()[: np.prod(shape)])


class Step:
  """The first step of a run: the student in decode layout, its rollout (both on the host) and the update's metrics."""

  def __init__(self, config, workdir, shape=ONE, *flags):
    self.run = run = opened(config, workdir, shape, *flags)
    student = models.load(run.student_path, dtype="float32", mesh=run.mesh)
    self.layout_text = run.table.compile("decode_layout", 0, student).as_text()
    layout = run.table.run("decode_layout", 0, student)
    prompts = pad_left(run.prompts.token_ids[:8], run.config.rollout.max_prompt)
    prompts_bp, prompt_mask_bp, rows_r = place_rows(run.mesh, (*prompts, np.arange(8, dtype=np.uint32)))
    numbers = np.int32(BUCKET), np.uint32(0), np.uint32(0)
    rollout = run.table.run("rollout", BUCKET, layout, prompts_bp, prompt_mask_bp, *numbers, rows_r)
    self.layout, self.rollout = fetch(layout), fetch(rollout)
    self.metrics = self.update(self.rollout)

  def update(self, rollout):
    """The metrics of an update on a rollout, from the student as it was loaded."""
    run = self.run
    student, teacher = (models.load(p, dtype="float32", mesh=run.mesh) for p in (run.student_path, run.teacher_path))
    state = init_state(student, make_optimizer(run.config))
    batch = Batch(place_rows(run.mesh, rollout))
    _, metrics = run.table.run("update", BUCKET, state, Frozen(teacher), batch)
    return {name: metric.to_float() for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def steps(tiny_config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("steps")
  return {shape: Step(tiny_config, workdir, shape, "rollout.int8=true") for shape in (ONE, CUBE)}


@pytest.fixture(scope="module")
def plain(tiny_config, tmp_path_factory):
  return Step(tiny_config, tmp_path_factory.mktemp("plain"))


def multiplied_out(layout, student):
  """The float32 model that a layout in int8 stands for, its integers checked against the weights they come from."""
  full, params = traverse_util.flatten_dict(student.params), traverse_util.flatten_dict(layout.params)
  for path, axes in ((path, SUMMED[path[-1]]) for path in params if path[-1] in SUMMED):
    q, scale, w = params[path].qvalue, params[path].scale, np.asarray(full[path], np.float64)
    np.testing.assert_allclose(scale, np.abs(w).max(axis=axes, keepdims=True) / 127.5, rtol=1e-6)
    assert q.dtype == np.int8 and np.abs(q - w / scale).max() < 0.5 + 1e-4  # the nearest
    params[path] = jnp.asarray(q * scale)
  return dataclasses.replace(layout, params=traverse_util.unflatten_dict(params))


def written_logprobs(model, rollout, vocab_size):
  """The log-probability of every written token, row by row without padding, from whole logits in float64."""
  found = []
  for r in range(len(rollout.tokens_bs)):
    prompt = rollout.prompts_bp[r][rollout.prompt_mask_bp[r]]
    completion = rollout.completions_bs[r][rollout.completion_mask_bs[r]]
    logits_tv = models.logits(model, [np.concatenate([prompt, completion])])[0, len(prompt) - 1 : -1, :vocab_size]
    logits_tv = np.asarray(logits_tv, np.float64)
    found += list(logits_tv[np.arange(len(completion)), completion] - np.log(np.exp(logits_tv).sum(-1)))
  return np.array(found)


def test_a_mesh_writes_what_one_device_writes(steps, plain):
  one, cube = (steps[shape].rollout for shape in (ONE, CUBE))
  np.testing.assert_array_equal(cube.tokens_bs, one.tokens_bs)
  np.testing.assert_allclose(cube.behaviour_logprob_bs, one.behaviour_logprob_bs, atol=1e-5)
  for ours, theirs in zip(jax.tree.leaves(steps[CUBE].layout), jax.tree.leaves(steps[ONE].layout), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert np.abs(one.behaviour_logprob_bs - plain.rollout.behaviour_logprob_bs).max() > 1e-3


@pytest.mark.parametrize("shape", [ONE, CUBE], ids=str)
def test_the_gap_is_that_of_the_rounded_weights(steps, shape):
  step = steps[shape]
  student, vocab_size = models.load(step.run.student_path, dtype="float32"), step.run.pair.vocab_size
  writer = multiplied_out(step.layout, student)
  scored, writer = (written_logprobs(model, step.rollout, vocab_size) for model in (student, writer))
  np.testing.assert_allclose(step.rollout.behaviour_logprob_bs[step.rollout.completion_mask_bs], writer, atol=1e-4)
  d = scored - writer
  assert len(d) == step.metrics["tokens"]
  assert step.metrics["decode_gap"] == pytest.approx(np.abs(d).mean(), rel=1e-3)
  assert step.metrics["decode_kl"] == pytest.approx((np.exp(d) - 1 - d).mean(), rel=1e-3)


@pytest.mark.parametrize("written, scored", [(1.0, 1.0), (0.7, 0.7), (0.0, 1.0)])
def test_a_float32_writer_is_its_own_scorer(tiny_config, tmp_path, plain, steps, written, scored):
  flags = f"rollout.temperature={written}", f"objective.temperature={scored}"
  metrics = (plain if written == 1 else Step(tiny_config, tmp_path, ONE, *flags)).metrics
  assert 0 <= metrics["decode_gap"] < 1e-4 < steps[ONE].metrics["decode_gap"]
  assert abs(metrics["decode_kl"]) < 1e-6 < steps[ONE].metrics["decode_kl"]


def test_a_bfloat16_writer_is_further_from_a_float32_scorer(tiny_config, tmp_path, plain):
  """The steps of bfloat16 at a channel's largest weights are about as wide as those of int8."""
  rollout = Step(tiny_config, tmp_path, ONE, "student.dtype=bfloat16").rollout
  metrics = plain.update(rollout)
  assert 1e-3 < metrics["decode_gap"] < 0.1 and plain.metrics["decode_gap"] < metrics["decode_gap"] / 100


def test_log_probs_of_two_temperatures_are_not_compared(tiny_config, tmp_path):
  run = opened(tiny_config, tmp_path, ONE, "rollout.temperature=0.7")
  programs = list_programs(run.config, Architectures(run.pair.student, run.pair.teacher), run.mesh)
  update = next(program for program in programs if program.name == "update")
  _, metrics = run.table.trace("update", BUCKET, *update.arguments).out_info
  assert "loss" in metrics and not {"decode_gap", "decode_kl"} & metrics.keys()


def test_what_the_devices_send_each_other_of_the_layers_is_int8(steps):
  sent = {}
  for line in steps[CUBE].layout_text.splitlines():
    if re.search(r" all-gather(-start)?\(", line):
      for dtype, shape in re.findall(r"(\w+)\[([\d,]+)\]", line.split(" all-gather")[0]):
        sent[dtype] = sent.get(dtype, 0) + int(np.prod([int(n) for n in shape.split(",")]))
  leaves = jax.tree.leaves(steps[CUBE].layout.params)
  whole = {dtype: sum(x.size for x in leaves if x.dtype == dtype) for dtype in ("int8", "float32")}
  assert sent.keys() == {"s8", "f32"}
  assert 2 * sent["s8"] == whole["int8"]  # a device gathers the half that `tensor` leaves it
  assert 2 * sent["f32"] <= whole["float32"]  # embedding and scales


def test_the_decode_loop_makes_one_layer_at_a_time_into_full_precision():
  """Compiled, not run: all layers in float32 would be in the temporaries."""
  fields = {"model_type": "qwen3", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 192, "head_dim": 16}
  fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 24}
  architecture = models.Architecture.from_config(fields, "test")
  model = jax.eval_shape(lambda: models.quantize(models.initialize(architecture, jax.random.key(0), "float32")))
  write = functools.partial(sample_completions, bucket=4, sampling=Sampling(), eos_ids=(0,), vocab_size=97)
  numbers = jnp.int32(4), jnp.uint32(0), jnp.uint32(0), jnp.zeros(1, jnp.uint32)
  compiled = jax.jit(write).lower(model, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), *numbers).compile()
  whole = sum(4 * x.size for x in jax.tree.leaves(model.params) if x.dtype == jnp.int8)
  assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def test_a_run_resumes_bit_for_bit_and_is_marked_in_full_precision(tiny_pair, tiny_config, tmp_path, capsys):
  marks = [f"eval.path={tiny_pair}/prompts.jsonl", "eval.prompts=8", "eval.batch=8"]
  flags = ["rollout.int8=true", *marks]
  run = opened(tiny_config, tmp_path / "whole", ONE, *flags)
  train(run)
  printed = capsys.readouterr().out
  first, *_ = metrics = timeless_rows(tmp_path / "whole" / "metrics.jsonl")
  assert all(row["decode_gap"] > 1e-4 for row in metrics) and f"  gap {first['decode_gap']:.2g}  " in printed
  for steps in (2, 4):
    train(opened(tiny_config, tmp_path / "parts", ONE, *flags, f"steps={steps}"))
  for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
    parts = [row for row in timeless_rows(tmp_path / "parts" / name) if name == "metrics.jsonl" or row["step"] != 2]
    assert parts == timeless_rows(tmp_path / "whole" / name)

  programs = list_programs(run.config, Architectures(run.pair.student, run.pair.teacher), run.mesh)
  assert sorted((p.name, p.bucket) for p in programs) == sorted(
    [("decode_layout", 0), ("rollout", BUCKET), ("update", BUCKET)]
    + [("evaluate_layout", 0), ("evaluate_greedy", BUCKET), ("canary", BUCKET)] * 2
    + [("token_kl", BUCKET)]
  )
  # Each compiled once, from these abstract arguments: so the arrays that came were like them.
  assert sorted((c.program, c.bucket) for c in run.table.compiles) == sorted((p.name, p.bucket) for p in programs)
  for program in programs:
    held = {leaf.dtype for leaf in jax.tree.leaves(program.arguments[0])}
    assert (jnp.dtype("int8") in held) == (program.name == "rollout"), program.label
