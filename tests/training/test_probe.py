"""Steps that probe: their cosine against dense autodiff, the step they take, what others pay for it, and whole runs."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.planning.footprint import model_temporaries
from opd_jax.planning.subject import abstract_mesh, read_architectures
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Rollout
from opd_jax.scoring import score
from opd_jax.telemetry.page import write_report
from opd_jax.training import open_run, train
from opd_jax.training.batch import Batch
from opd_jax.training.programs import list_programs
from opd_jax.training.state import Frozen, TrainState, make_optimizer
from opd_jax.training.step import define_programs
from tests.conftest import timeless

VOCAB, B, P, S = 40, 8, 6, 12
PREFIX = 5


def small_model(width, seed, tied):
  config = {
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": width,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": tied,
    "initializer_range": 0.1,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(seed), "float32")


@pytest.fixture(scope="module")
def pair():
  return small_model(32, 0, tied=True), small_model(64, 1, tied=False)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  prompt_lengths, lengths = rng.integers(1, P + 1, B), rng.integers(2, S + 1, B)
  return Rollout(
    tokens_bs=jnp.asarray(rng.integers(0, VOCAB, (B, P + S)), jnp.int32),
    prompt_mask_bp=jnp.asarray(np.arange(P) >= P - prompt_lengths[:, None]),
    completion_mask_bs=jnp.asarray(np.arange(S) < lengths[:, None]),
    truncated_b=jnp.asarray(lengths == S),
    behaviour_logprob_bs=jnp.zeros((B, S)),
  )


def step(pair, batch, prefix=None, **sections):
  """The student's parameters after a step, and its metrics."""
  config = from_config_dict({"optimizer": {"learning_rate": 1e-3}} | sections, check=False)
  table = ProgramTable()
  define_programs(table, config, (3,), VOCAB)
  student = jax.tree.map(jnp.copy, pair[0])  # used up
  state = TrainState(student, make_optimizer(config).init(student.params), jnp.int32(0))
  arguments = (state, Frozen(pair[1]), Batch(batch))
  if prefix is None:
    state, metrics = table.run("update", S, *arguments)
  else:
    state, metrics = table.run("probe", S, *arguments, np.int32(prefix))
  return state.student.params, {name: metric.to_float() for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def dense_gradients(pair, batch):
  """Of the mean reverse KL over whole [B, S, V] logits, float64: {prefix: gradient of the tokens before it}."""
  with jax.enable_x64(True):
    student, teacher = (
      dataclasses.replace(model, params=jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), model.params))
      for model in pair
    )
    rows = batch.prompts_bp, batch.prompt_mask_bp, batch.completions_bs, batch.completion_mask_bs
    log_q = jax.nn.log_softmax(score(teacher, *rows) @ teacher.head_vd.T)

    def loss(params, prefix):
      model = dataclasses.replace(student, params=params)
      log_p = jax.nn.log_softmax(score(model, *rows) @ model.head_vd.T)
      kl = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
      counts = batch.completion_mask_bs & (jnp.arange(S) < prefix)
      return jnp.where(counts, kl, 0).sum() / batch.completion_mask_bs.sum()

    gradient = jax.jit(jax.grad(loss))
    leaves = {prefix: jax.tree.leaves(gradient(student.params, prefix)) for prefix in (PREFIX, S)}
    assert all(leaf.dtype == jnp.float64 for leaf in leaves[S])
    return {prefix: np.concatenate([np.asarray(g).ravel() for g in of]) for prefix, of in leaves.items()}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_cosine_and_norms_are_those_of_dense_autodiff(pair, batch, dense_gradients, micro_batches):
  _, metrics = step(pair, batch, PREFIX, optimizer={"micro_batches": micro_batches})
  part, whole = dense_gradients[PREFIX], dense_gradients[S]
  norms = np.linalg.norm(part), np.linalg.norm(whole)
  cosine = part @ whole / np.prod(norms)
  assert 0.3 < cosine < 0.99
  np.testing.assert_allclose(metrics["probe_cosine"], cosine, rtol=1e-5)
  np.testing.assert_allclose(metrics["probe_norm_ratio"], norms[0] / norms[1], rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"], norms[1], rtol=1e-5)


def test_eight_devices_find_what_one_finds(pair, batch):
  _, metrics = step(pair, batch, PREFIX)
  with jax.set_mesh(make_mesh((2, 2, 2), jax.devices()[:8])):
    _, same = step(pair, batch, PREFIX)
  for name in ("probe_cosine", "probe_norm_ratio", "grad_norm", "loss"):
    np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5)


OBJECTIVES = (
  {"kind": "sampled + 0.5*forward_kl", "gamma": 0.9},
  {"kind": "forward_kl", "select_by": "divergence", "select_share": 0.5},
)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["kind"])
def test_a_probe_takes_the_step_that_an_update_takes(pair, batch, objective):
  """With terms that look past a token, and with tokens chosen among all of the response."""
  params, metrics = step(pair, batch, objective=objective)
  probed, more = step(pair, batch, PREFIX, objective=objective)
  assert more.keys() - metrics.keys() == {"probe_cosine", "probe_norm_ratio"}
  for name, value in metrics.items():
    np.testing.assert_allclose(more[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
  # Adam divides a gradient by its size: where that is nothing but rounding, the step's sign is.
  moved = [np.abs(a - b) < 1e-5 for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(probed), strict=True)]
  assert np.mean(np.concatenate([same.ravel() for same in moved])) > 0.999


def test_a_prefix_of_everything_agrees_fully_and_one_of_nothing_is_nothing(pair, batch):
  _, metrics = step(pair, batch, S)
  assert metrics["probe_cosine"] == pytest.approx(1, abs=1e-6)
  assert metrics["probe_norm_ratio"] == pytest.approx(1, abs=1e-6)
  _, metrics = step(pair, batch, 0)
  assert np.isnan(metrics["probe_cosine"]) and metrics["probe_norm_ratio"] == 0


FLAGS = ["horizon.kind=probe", "horizon.start=8", "horizon.every=3", "horizon.buckets=8,16", "horizon.agreement=0.99"]


def load(config_file, *flags):
  return load_config(config_file, [f"--config.{flag}" for flag in (*FLAGS, "steps=8", *flags)])


def test_ordinary_steps_are_the_program_that_they_are_without_probes(tiny_config):
  texts = {}
  for kind in ("probe", "reliability"):
    config = load(tiny_config, f"horizon.kind={kind}")
    architectures, table = read_architectures(config), ProgramTable()
    define_programs(table, config, (0,), architectures.vocab_size)
    for program in list_programs(config, architectures, abstract_mesh(config, 1)):
      if program.trains and program.bucket == 16:
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.arguments)
        text = str(table.trace(program.name, 16, *plain).jaxpr)
        texts[kind, program.name] = re.sub(r"0x[0-9a-f]+", "", text)  # where functions of custom rules lie
  assert texts["probe", "update"] == texts["reliability", "update"]
  assert ("reliability", "probe") not in texts
  counts = {key: text.count("dot_general") for key, text in texts.items()}
  assert counts["probe", "update"] < counts["probe", "probe"] < 2 * counts["probe", "update"]  # one forward, not two


def run(config, workdir):
  opened = open_run(config, workdir, jax.devices()[:1])
  train(opened)
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return opened, lines


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("probe")
  return *run(load(tiny_config, "log.tensorboard=true"), workdir), workdir


def test_a_run_probes_at_the_full_horizon_and_moves_by_what_it_finds(whole):
  """Random models: no prefix agrees to 0.99, so the first probe is a rung; at the last rung they look below it."""
  _, lines, workdir = whole
  assert [line["horizon"] for line in lines] == [8, 8, 16, 16, 16, 16, 16, 16]
  assert [line.get("probe_prefix") for line in lines] == [None, None, 8, None, None, 8, None, None]
  for line in lines:
    assert ("probe_cosine" in line) == ("probe_norm_ratio" in line) == ("probe_prefix" in line)
    assert -1 <= line.get("probe_cosine", 0) < 0.99
  assert "horizon" in write_report(workdir).read_text()


def test_a_run_compiles_what_it_may_need_once_and_nothing_else(whole):
  opened, lines, _ = whole
  compiled = [(c.program, c.bucket) for c in opened.table.compiles]
  of_a_step = [(name, bucket) for name, bucket in compiled if name in ("rollout", "update", "probe")]
  assert sorted(of_a_step) == [("probe", 16), ("rollout", 8), ("rollout", 16), ("update", 8), ("update", 16)]
  assert lines[-1]["compiles"] == len(compiled) and lines[-1]["unplanned_compiles"] == 0
  planned = list_programs(opened.config, read_architectures(opened.config), abstract_mesh(opened.config, 1))
  assert sorted((p.name, p.bucket) for p in planned) == sorted(compiled)
  update, probe = (next(p for p in planned if (p.name, p.bucket) == (name, 16)) for name in ("update", "probe"))
  arguments = opened.config, read_architectures(opened.config)
  held = [model_temporaries(*arguments, p, abstract_mesh(opened.config, 1)).fixed for p in (update, probe)]
  assert held[1] > held[0]  # a second gradient


def test_a_run_resumed_after_a_probe_is_the_run_that_never_stopped(whole, tiny_config, tmp_path):
  _, expected, _ = whole
  run(load(tiny_config, "log.tensorboard=true", "steps=4"), tmp_path)
  opened, lines = run(load(tiny_config, "log.tensorboard=true"), tmp_path)
  assert timeless(lines) == timeless(expected)
  assert ("update", 8) not in {(c.program, c.bucket) for c in opened.table.compiles}  # it knows that it is past that
