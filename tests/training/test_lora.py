"""A student with a LoRA: its factors alone move, and whoever writes, scores, saves or exports it sees their sum."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from opd_jax import models
from opd_jax.command_line import load_config
from opd_jax.config import from_config_dict
from opd_jax.distributed import fetch, make_mesh, place_rows
from opd_jax.errors import InputError
from opd_jax.planning.footprint import model_temporaries, resident
from opd_jax.planning.subject import abstract_mesh, read_architectures
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Rollout
from opd_jax.training import open_run, restore_student, train
from opd_jax.training.batch import Batch
from opd_jax.training.programs import list_programs
from opd_jax.training.state import Frozen, init_state, make_optimizer
from opd_jax.training.step import define_programs
from tests.conftest import saved_arrays, timeless_rows

ONE, CUBE = (1, 1, 1), (2, 2, 2)
B, P, S = 8, 6, 5
# Our names and those of Hugging Face checkpoints.
PUBLISHED = {
  "query_nhd": "self_attn.q_proj",
  "key_khd": "self_attn.k_proj",
  "value_khd": "self_attn.v_proj",
  "output_dnh": "self_attn.o_proj",
  "gate_fd": "mlp.gate_proj",
  "up_fd": "mlp.up_proj",
  "down_df": "mlp.down_proj",
}
# Without clipping and with b1 = 0, Adam's first moment after one step is the gradient.
CONFIG = from_config_dict(
  {
    "student": {"lora": {"rank": 3, "alpha": 6.0}},
    "optimizer": {"b1": 0.0, "clip": 0.0, "micro_batches": 2, "learning_rate": 1e-3},
  },
  check=False,
)
SCALE = 2.0


def flat(params):
  return traverse_util.flatten_dict(params)


def adapted(folder, lora, mesh=None):
  """A checkpoint of the tiny pair with factors, none of which is zero."""
  model = models.add_factors(models.load(folder, dtype="float32", mesh=mesh), lora, jax.random.key(7))
  rng = np.random.default_rng(1)
  factors = {path: rng.normal(0, 0.2, x.shape).astype(np.float32) for path, x in sorted(flat(model.trained).items())}
  return model.with_trained(
    traverse_util.unflatten_dict(
      {path: jax.device_put(factors[path], x.sharding) for path, x in flat(model.trained).items()}
    )
  )


def written():
  rng = np.random.default_rng(0)
  prompts, lengths = rng.integers(1, P + 1, B), rng.integers(1, S + 1, B)
  return Rollout(
    tokens_bs=rng.integers(0, 250, (B, P + S)).astype(np.int32),
    prompt_mask_bp=np.arange(P) >= P - prompts[:, None],
    completion_mask_bs=np.arange(S) < lengths[:, None],
    truncated_b=lengths == S,
    behaviour_logprob_bs=np.zeros((B, S), np.float32),
  )


def dense(folder, factors, rollout, vocab_size):
  """(loss, {our path: gradient}) by torch in float64 (transformers' norms are float32): every weight W + s B A as one
  matrix, every row by itself without padding, KL(student || teacher) over whole logits."""
  import torch
  from transformers import AutoModelForCausalLM

  student, teacher = (
    AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float64).eval() for name in ("student", "teacher")
  )
  leaves, weights = {}, dict(student.named_parameters())
  for path, factor in factors.items():
    leaves[path] = torch.tensor(np.asarray(factor, np.float64), requires_grad=True)
  for path in {path[:-1] for path in factors}:
    a, b = leaves[(*path, "a")], leaves[(*path, "b")]
    for layer in range(len(a)):
      name = f"model.layers.{layer}.{PUBLISHED[path[-1]]}.weight"
      weights[name] = weights[name].detach() + SCALE * b[layer].flatten(0, -2) @ a[layer].flatten(1)
  total, count = 0.0, 0
  for row in range(B):
    mask = np.concatenate([rollout.prompt_mask_bp[row], rollout.completion_mask_bs[row]])
    tokens = torch.tensor(rollout.tokens_bs[row][mask].astype(np.int64))[None]
    ours = torch.func.functional_call(student, weights, (tokens,)).logits[0]
    with torch.no_grad():
      theirs = teacher(tokens).logits[0]
    n = int(rollout.completion_mask_bs[row].sum())
    logp, logq = (x[-n - 1 : -1, :vocab_size].log_softmax(-1) for x in (ours, theirs))
    total, count = total + (logp.exp() * (logp - logq)).sum(), count + n
  loss = total / count
  gradient = torch.autograd.grad(loss, list(leaves.values()))
  return loss.item(), {path: g.numpy() for path, g in zip(leaves, gradient)}


@pytest.fixture(scope="module")
def reference(tiny_pair):
  student = adapted(tiny_pair / "student", CONFIG.student.lora)
  return dense(tiny_pair, flat(student.trained), written(), student.config.vocab_size)


@pytest.mark.parametrize("sizes", [ONE, CUBE], ids=str)
def test_the_gradient_is_that_of_the_dense_definition_and_the_layout_is_the_sum(tiny_pair, reference, sizes):
  mesh = make_mesh(sizes, jax.devices()[: np.prod(sizes)])
  table, rollout = ProgramTable(mesh), written()
  student = adapted(tiny_pair / "student", CONFIG.student.lora, mesh)
  define_programs(table, CONFIG, (0,), student.config.vocab_size)
  before = fetch(student)

  layout = fetch(table.run("decode_layout", 0, student))
  kept, sums = flat(before.params), flat(layout.params)
  assert {path[-1] for path in kept if isinstance(kept[path], type(kept["layers", "mlp", "up_fd"]))} == PUBLISHED.keys()
  for path, weight in sums.items():
    if path[-1] not in PUBLISHED:
      np.testing.assert_array_equal(weight, kept[path])
      continue
    base, a, b = (np.asarray(x, np.float64) for x in (kept[path].weight, kept[path].a, kept[path].b))
    for layer in range(len(base)):
      product = b[layer].reshape(-1, 3) @ a[layer].reshape(3, -1)
      np.testing.assert_allclose(weight[layer], base[layer] + SCALE * product.reshape(base[layer].shape), atol=1e-6)

  teacher = models.load(tiny_pair / "teacher", dtype="float32", mesh=mesh)
  state = init_state(student, make_optimizer(CONFIG))
  state, metrics = table.run("update", S, state, Frozen(teacher), Batch(place_rows(mesh, rollout)))
  loss, gradient = reference
  np.testing.assert_allclose(metrics["loss"].to_float(), loss, rtol=1e-5)
  found = flat(fetch(optax.tree_utils.tree_get(state.opt_state, "mu")))
  assert found.keys() == gradient.keys() and len(found) == 2 * len(PUBLISHED)
  for path, expected in gradient.items():
    np.testing.assert_allclose(found[path], expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=str(path))
  after = fetch(state.student)
  for path, weight in flat(after.params).items():
    frozen, old = (weight.weight, kept[path].weight) if path[-1] in PUBLISHED else (weight, kept[path])
    np.testing.assert_array_equal(frozen, old)
  assert all((x != y).any() for x, y in zip(jax.tree.leaves(after.trained), jax.tree.leaves(before.trained)))


def test_a_student_begins_as_its_base_bit_for_bit(tiny_pair):
  base, tokens = models.load(tiny_pair / "student", dtype="bfloat16"), np.arange(24).reshape(2, 12)
  lora = dataclasses.replace(CONFIG.student.lora, targets=("query_nhd", "down_df"))
  student = models.add_factors(base, lora, jax.random.key(0))
  assert {path[-2:] for path in flat(student.trained)} == {(name, x) for name in lora.targets for x in "ab"}
  assert any(np.any(x != 0) for x in jax.tree.leaves(student.trained))
  np.testing.assert_array_equal(models.logits(student, tokens), models.logits(base, tokens))


def test_the_plan_counts_the_bytes_of_the_arrays_of_a_run(tiny_config, tiny_pair):
  flags = ["student.dtype=bfloat16", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "horizon.kind=full"]
  full = load_config(tiny_config, [f"--config.{flag}" for flag in flags])
  config = dataclasses.replace(full, student=dataclasses.replace(full.student, lora=CONFIG.student.lora))
  mesh, architectures = make_mesh(CUBE, jax.devices()[:8]), read_architectures(config)
  base = models.load(tiny_pair / "student", dtype=jnp.bfloat16, mesh=mesh)
  state = init_state(models.add_factors(base, config.student.lora, jax.random.key(0)), make_optimizer(config))

  def on_first_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

  for planned in (mesh, abstract_mesh(config, 8)):
    roles = resident(config, architectures, planned)
    assert roles.student == on_first_device(state.student)
    assert roles.optimizer == on_first_device((state.opt_state, state.step))
  update = next(p for p in list_programs(config, architectures, mesh) if p.name == "update")
  placed = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), update.arguments[0], state)
  assert all(jax.tree.leaves(placed))
  factors, whole = (model_temporaries(c, architectures, update, mesh).fixed for c in (config, full))
  assert factors < whole


FLAGS = ("student.lora.rank=2", "optimizer.learning_rate=0.01", "log.fail_on_unplanned_compile=true")


def run(config, pair, workdir, *flags):
  flags = [*FLAGS, f"student.path={pair}", "horizon.kind=full", "horizon.max=8", "horizon.buckets=8", *flags]
  opened = open_run(load_config(config, [f"--config.{flag}" for flag in flags]), workdir, jax.devices()[:1])
  return opened


def rows(workdir):
  return timeless_rows(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def trained(tiny_config, tiny_pair, tmp_path_factory):
  """Three steps in one go, on a copy of the student: (config, student's folder, run)."""
  workdir = tmp_path_factory.mktemp("lora")
  student = shutil.copytree(tiny_pair / "student", workdir / "student")
  opened = run(tiny_config, student, workdir / "run", "steps=3")
  train(opened)
  compiled = [(c.program, c.bucket) for c in opened.table.compiles if c.program != "canary"]
  assert len(compiled) == len(set(compiled))  # what was compiled ahead is what was called
  return tiny_config, student, opened


def test_what_writes_is_what_is_scored(trained):
  metrics = rows(trained[2].workdir)
  assert len(metrics) == 3 and all(0 <= row["decode_gap"] < 1e-4 and row["grad_norm"] > 0 for row in metrics)
  assert all(row["moved"] > 0 for row in metrics)


def test_a_checkpoint_holds_the_factors_alone_and_resuming_changes_no_bit(trained, tmp_path):
  config, student, whole = trained
  for steps in (2, 3):
    train(run(config, student, tmp_path, f"steps={steps}"))
  assert rows(tmp_path) == rows(whole.workdir)
  ours, theirs = saved_arrays(tmp_path, 3), saved_arrays(whole.workdir, 3)
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
  held = {name.split("/", 1)[1] for name in ours if name.startswith("student/")}
  attention = ("query_nhd", "key_khd", "value_khd", "output_dnh")
  assert held == {f"layers/{'attention' if w in attention else 'mlp'}/{w}/{x}" for w in PUBLISHED for x in "ab"}
  sizes = {
    part: sum(x.nbytes for name, x in ours.items() if name.startswith(part)) for part in ("opt_state", "student")
  }
  assert 0 <= sizes["opt_state"] - 2 * sizes["student"] <= 16  # two moments of each, and counts


def test_transformers_loads_the_exported_sum(trained, tmp_path):
  import torch
  from transformers import AutoModelForCausalLM

  _, folder, opened = trained
  student, step = restore_student(opened)
  assert step == 3
  models.save(student, tmp_path / "out", source=folder)
  exported, base = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (tmp_path / "out", folder))
  saved = saved_arrays(opened.workdir, 3)
  tokens = torch.tensor(np.random.default_rng(0).integers(0, 250, (2, 12)))
  with torch.no_grad():
    untrained = base(tokens).logits.numpy()
    weights = dict(base.named_parameters())
    for name in (name for name in saved if name.startswith("student/") and name.endswith("/a")):
      a, b, ours = saved[name], saved[name[:-1] + "b"], name.split("/")[-2]
      for layer in range(len(a)):
        product = b[layer].reshape(-1, 2) @ a[layer].reshape(2, -1)
        weights[f"model.layers.{layer}.{PUBLISHED[ours]}.weight"] += torch.tensor(32.0 / 2 * product)
    expected, found = base(tokens).logits.numpy(), exported(tokens).logits.numpy()
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(models.logits(student, tokens.numpy()), found, atol=1e-4)
  assert np.abs(expected - untrained).max() > 1e-2


def test_another_base_than_that_of_the_factors_is_refused(trained):
  config, folder, opened = trained
  kept = (folder / "model.safetensors").read_bytes()
  try:
    (folder / "model.safetensors").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(InputError, match=r"is not the student that .* was trained with"):
      restore_student(opened)
    with pytest.raises(InputError, match=r"is not the student that .* was trained with"):
      train(run(config, folder, opened.workdir, "steps=4"))
  finally:
    (folder / "model.safetensors").write_bytes(kept)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["rank=-1"], r"student\.lora\.rank is -1.*0 \(off\)"),
    (["rank=17"], r"student\.lora\.rank is 17: key_khd is a matrix of 16 x 32.*at most 16"),
    (["rank=2", "targets=('q_proj',)"], r"'q_proj'.*did you mean `query_nhd`"),
    (["rank=2", "targets=('gate_df',)"], r"'gate_df'.*did you mean `gate_fd`"),
    (["targets=('gate_fd',)"], r"student\.lora\.rank is 0.*at least 1"),
    (["rank=2", "alpha=0"], r"student\.lora\.alpha is 0.*above 0"),
  ],
)
def test_what_does_not_fit_the_student_is_one_line(tiny_config, tmp_path, flags, words):
  with pytest.raises(InputError, match=words):
    open_run(load_config(tiny_config, [f"--config.student.lora.{flag}" for flag in flags]), tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_a_teacher_that_follows_needs_whole_weights(tiny_config):
  flags = ["student.lora.rank=2", "teacher.path=student", "teacher.ema=0.1"]
  with pytest.raises(InputError, match=r"teacher\.ema is 0\.1.*0 under student\.lora"):
    load_config(tiny_config, [f"--config.{flag}" for flag in flags])
