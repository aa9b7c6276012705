"""Numbers that go wrong: an update that would do harm is skipped, bit for bit, and a run of them ends with one line."""

import dataclasses
import functools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from opd_jax import command_line, models, objectives, train
from opd_jax.config import from_config_dict
from opd_jax.objectives import TokenWeights, make_objective
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Rollout
from opd_jax.telemetry.metrics import to_floats
from opd_jax.training import Checkpointer, distill
from opd_jax.training.batch import Batch
from opd_jax.training.skips import first_broken, measure, parameter_names
from opd_jax.training.state import Frozen, TrainState, make_optimizer
from opd_jax.training.step import update

VOCAB, B, P, S = 40, 4, 6, 5
SKIP_ABOVE = 20.0


def small_model(seed):
  config = {
    "model_type": "qwen2",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.1,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(seed), "float32")


CONFIG = from_config_dict({"steps": 10, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5}}, check=False)
OPTIMIZER = make_optimizer(CONFIG)


@pytest.fixture(scope="module")
def state():
  """No number of it is zero, and the teacher that follows the student is another model."""
  student = small_model(0)
  opt_state = jax.tree.map(lambda x: jnp.full_like(x, 1e-3) if x.ndim else x + 3, OPTIMIZER.init(student.params))
  return TrainState(student, opt_state, jnp.int32(3), small_model(1))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return Rollout(
    tokens_bs=jnp.asarray(rng.integers(0, VOCAB, (B, P + S)), jnp.int32),
    prompt_mask_bp=jnp.asarray(np.arange(P) >= rng.integers(0, P, (B, 1))),
    completion_mask_bs=jnp.asarray(np.arange(S) < rng.integers(1, S + 1, (B, 1))),
    truncated_b=jnp.zeros(B, bool),
    behaviour_logprob_bs=jnp.zeros((B, S)),
  )


@pytest.fixture(scope="module")
def table():
  """One update for all tests, as a run makes it: the old state is given away."""
  table = ProgramTable()
  run = functools.partial(
    update,
    objective=make_objective(CONFIG.objective, VOCAB),
    token_weights=TokenWeights(),
    eos_ids=(3,),
    optimizer=OPTIMIZER,
    dtype=jnp.float32,
    micro_batches=1,
    remat=False,
    teacher_dtype=jnp.float32,
    ema=0.1,
    skip_above=SKIP_ABOVE,
    compare_decoding=True,
  )
  table.define("update", run, donate=(0,))
  return table


@pytest.fixture
def step(table):
  def call(state, batch):
    given = jax.tree.map(jnp.copy, state)  # used up by the call
    state, metrics = table.run("update", S, given, Frozen(None), Batch(batch))
    return state, to_floats(metrics)

  return call


def of_teacher(state, change):
  """`state` with its teacher's weights changed: `change(name, array) -> array`."""
  params = state.teacher.params
  names = iter(parameter_names(state.teacher))
  return dataclasses.replace(
    state, teacher=dataclasses.replace(state.teacher, params=jax.tree.map(lambda x: change(next(names), x), params))
  )


def one_weight(value):
  """Makes one number of the last norm `value`."""
  return lambda name, x: x.at[0].set(value) if name == "norm/scale" else x


def assert_same_bits(a, b):
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def assert_skipped(before, after, metrics):
  assert metrics["skipped"] == 1 and metrics["moved"] == metrics["update_ratio"] == 0
  assert int(after.step) == int(before.step) + 1
  assert_same_bits(dataclasses.replace(after, step=before.step), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_meets_a_number_that_is_none_is_skipped(step, state, batch, value):
  broken = of_teacher(state, one_weight(value))
  after, metrics = step(broken, batch)
  assert_skipped(broken, after, metrics)
  assert not np.isfinite(metrics["loss"])


def test_a_gradient_that_is_too_large_is_skipped(step, state, batch):
  """A teacher a thousand times as sure of itself: the loss spikes, and all numbers are finite."""
  spike = of_teacher(state, lambda name, x: x * 1e3 if name == "norm/scale" else x)
  after, metrics = step(spike, batch)
  assert_skipped(spike, after, metrics)
  assert np.isfinite(metrics["loss"]) and SKIP_ABOVE < metrics["grad_norm"] < np.inf


def test_an_update_that_is_not_finite_is_skipped_though_its_gradient_is(step, state, batch):
  """A second moment below zero, as a flipped sign bit leaves it: Adam takes its root."""
  broken = dataclasses.replace(state, opt_state=jax.tree.map(lambda x: -x if x.ndim else x, state.opt_state))
  after, metrics = step(broken, batch)
  assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
  assert_skipped(broken, after, metrics)


def test_a_batch_without_a_token_is_skipped(step, state, batch):
  """Every completion is empty, or every token of it is masked: the moments alone would have moved the weights."""
  empty = dataclasses.replace(batch, completion_mask_bs=jnp.zeros((B, S), bool))
  after, metrics = step(state, empty)
  assert_skipped(state, after, metrics)
  assert metrics["tokens"] == metrics["loss"] == metrics["grad_norm"] == 0


def test_rows_that_are_empty_or_end_at_once_train_with_the_others(step, state, batch):
  lengths = np.array([0, 1, 1, 0])
  short = dataclasses.replace(batch, completion_mask_bs=jnp.asarray(np.arange(S) < lengths[:, None]))
  after, metrics = step(state, short)
  assert metrics["skipped"] == 0 and metrics["tokens"] == 2 and metrics["completion_length"] == 0.5
  assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all() and metrics["moved"] > 0
  # What stands in the columns of a row without a token means nothing.
  other = jnp.asarray(np.where(lengths[:, None] == 0, 7, short.tokens_bs))
  same, _ = step(state, dataclasses.replace(short, tokens_bs=other))
  assert_same_bits(same, after)


def test_the_next_update_is_as_if_there_had_been_none(step, state, batch):
  """Neither moments nor the schedule's position have moved; all but the count of steps comes out the same."""
  empty = dataclasses.replace(batch, completion_mask_bs=jnp.zeros((B, S), bool))
  expected, metrics = step(state, batch)
  assert metrics["skipped"] == 0 and metrics["grad_norm"] < SKIP_ABOVE
  found, _ = step(step(state, empty)[0], batch)
  assert int(found.step) == int(expected.step) + 1
  assert_same_bits(dataclasses.replace(found, step=expected.step), expected)


@pytest.mark.parametrize(
  "leaves, norm, largest",
  [
    (([3.0, 4.0], [6.0], [0.0]), 61**0.5, 1),
    (([3.0, 4.0], [6.0, np.inf], [np.nan]), np.nan, 1),
    (([3.0, 4.0], [2e19], [1e19]), np.inf, 1),  # its square is beyond float32: too large for a sum of squares as well
    (([0.0], [0.0], [0.0]), 0.0, 0),
  ],
)
def test_the_norm_of_a_gradient_and_where_most_of_it_is(leaves, norm, largest):
  found, place = measure([jnp.asarray(leaf, jnp.float32) for leaf in leaves])
  np.testing.assert_allclose(found, norm, rtol=1e-6)
  assert int(place) == largest


def test_a_nan_is_traced_to_the_operation_that_makes_it(table, state, batch):
  """One infinite weight of the second layer's MLP: the product with it is the first that has no number."""
  assert table.first_nan("update", S, state, Frozen(None), Batch(batch)) is None
  assert first_broken(state.teacher) is None
  broken = of_teacher(state, lambda name, x: x.at[1, 0, 0].set(np.inf) if name == "layers/mlp/down_df" else x)
  found = table.first_nan("update", S, broken, Frozen(None), Batch(batch))
  assert "opd_jax/models/layers.py line" in found and "\n" not in found
  assert first_broken(broken.teacher) == "layers/mlp/down_df"


def test_the_old_state_gives_its_room_to_the_new(table, state, batch):
  memory = table.compile("update", S, state, Frozen(None), Batch(batch)).memory_analysis()
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  assert memory.alias_size_in_bytes >= size
  assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 4096  # metrics


@dataclasses.dataclass(frozen=True)
class Poisoned:
  """The reverse KL, until a response of the batch reaches column 8: then NaN. In the tiny run that is at step 3."""

  needs = frozenset()

  def calls(self, signals):
    poison = jnp.where(signals.mask_bs[:, 8:].any(), jnp.nan, 1.0)
    return (objectives.Call(signals.weights_bs * poison, "reverse_kl"),)


@pytest.fixture(scope="module")
def poisoned():
  objectives.register("poisoned", lambda config: Poisoned())
  return "--config.objective.kind=poisoned"


@pytest.fixture
def shell(monkeypatch, capfd):
  """shell(*arguments) of opd_jax.train -> (exit status, stdout, stderr), on one device."""
  monkeypatch.setattr(train, "distill", functools.partial(distill, devices=jax.devices()[:1]))

  def call(*arguments):
    monkeypatch.setattr(sys, "argv", ["opd_jax.train", *map(str, arguments)])
    status = 0
    try:
      command_line.run(train.main)
    except SystemExit as stop:
      status = stop.code
    return status, *capfd.readouterr()

  return call


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir, step):
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def test_a_run_of_skips_ends_with_one_line_and_keeps_what_is_good(shell, tiny_config, tmp_path, poisoned):
  flags = [f"--config={tiny_config}", poisoned, "--config.optimizer.skips=2", "--config.steps=8"]
  every = tmp_path / "every"
  status, out, err = shell(*flags, f"--workdir={every}", "--config.checkpoint.every=1")
  assert status == 1 and err.count("\n") == 1 and "Traceback" not in out + err, err
  for words in ("2 updates in a row", "steps 3 to 4", "the loss is nan", "in embed_vd", "checkpoint is of step 2"):
    assert words in err, err
  assert out.count("update skipped") == 1 and "step 3: update skipped" in out
  told = [(row["step"], row["skipped"], row["loss"] is None, row.get("largest_gradient")) for row in rows(every)]
  assert told == [(1, 0, False, None), (2, 0, False, None), (3, 1, True, "embed_vd"), (4, 1, True, "embed_vd")]
  assert sorted(path.name for path in (every / "checkpoints").iterdir()) == ["1", "2"]  # nothing that is good gave way
  # Where what is good is not saved yet, it is saved then, with the number of skips.
  seldom = tmp_path / "seldom"
  status, _, err = shell(*flags, f"--workdir={seldom}")
  assert status == 1 and "checkpoint is of step 4" in err
  good, kept = arrays(every, 2), arrays(seldom, 4)
  assert int(kept.pop("step")) == 4 and int(good.pop("step")) == 2
  assert_same_bits(kept, good)
  progress = Checkpointer(seldom, 1).progress()
  assert (progress.step, progress.skips, progress.data_position) == (4, 2, 32)
  # The count goes on in the next process.
  status, _, err = shell(*flags, f"--workdir={seldom}")
  assert status == 1 and "3 updates in a row" in err and "steps 3 to 5" in err and "checkpoint is of step 4" in err


def test_a_few_skips_are_told_and_the_run_goes_on(shell, tiny_config, tmp_path, poisoned):
  status, out, err = shell(f"--config={tiny_config}", f"--workdir={tmp_path}", poisoned)
  assert (status, err) == (0, "")
  assert "skipped    2 of 4 updates, the first at step 3" in out
  assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]  # the last step is always saved


def test_the_first_operation_that_makes_a_nan_is_named(shell, tiny_config, tmp_path, poisoned):
  status, out, err = shell(f"--config={tiny_config}", f"--workdir={tmp_path}", poisoned, "--config.debug.nans")
  assert status == 1 and err.count("\n") == 1 and "Traceback" not in out + err, err
  assert "step 3: the first operation that makes a NaN is" in err and "opd_jax/objectives/objective.py line" in err


def test_a_run_on_tokens_that_are_all_masked_ends(shell, tiny_pair, tiny_config, tmp_path):
  """Every row is the data set's answer, which is empty: its end alone, and that is left out of the loss."""
  prompts = tmp_path / "prompts.jsonl"
  lines = [json.loads(line) for line in (tiny_pair / "prompts.jsonl").read_text().splitlines()]
  prompts.write_text("".join(json.dumps(row | {"nothing": ""}) + "\n" for row in lines))
  status, _, err = shell(
    f"--config={tiny_config}",
    f"--workdir={tmp_path / 'w'}",
    f"--config.data.path={prompts}",
    "--config.data.answer_field=nothing",
    "--config.objective.kind=forward_kl",
    "--config.objective.dataset_share=1.0",
    "--config.objective.mask_all=('<|endoftext|>',)",
    "--config.optimizer.skips=2",
  )
  assert status == 1 and "steps 1 to 2: no token of its batch trains; the newest checkpoint is none" in err, err
  assert [(row["tokens"], row["loss"]) for row in rows(tmp_path / "w")] == [(8, 0.0)] * 2


def test_a_run_whose_rows_all_end_at_once_trains(shell, tiny_pair, tiny_config, tmp_path):
  """Every id ends an answer, so that each is one token long."""
  student = shutil.copytree(tiny_pair / "student", tmp_path / "student")
  (student / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(300))}))
  flags = [f"--config={tiny_config}", f"--workdir={tmp_path / 'w'}", f"--config.student.path={student}"]
  status, _, err = shell(*flags, "--config.steps=2")
  assert status == 0, err
  found = rows(tmp_path / "w")
  assert [(row["tokens"], row["completion_length"], row["skipped"]) for row in found] == [(8, 1.0, 0)] * 2
  assert np.isfinite([[row["loss"], row["grad_norm"]] for row in found]).all()
