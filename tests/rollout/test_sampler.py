"""The rollout contract: against transformers' generate, against full forwards, and against itself cut another way."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax import models
from opd_jax.data import pad_left
from opd_jax.distributed import make_mesh, place_rows
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Sampling, compaction, generate, generation, sample_completions
from opd_jax.rollout import sampler as sampler_module

PROMPTS = [[5, 9, 11], [3, 4, 5, 6, 7, 8, 2], [17], [30, 31]]


@pytest.fixture(scope="module")
def model():
  config = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(3), "float32")


def completions(rollout):
  """The generated tokens of each row, padding left out by the mask."""
  rollout = jax.device_get(rollout)
  return [row[mask].tolist() for row, mask in zip(rollout.completions_bs, rollout.completion_mask_bs)]


def test_shapes_masks_and_left_padding(model):
  out = jax.device_get(generate(model, PROMPTS, horizon=5, bucket=8, temperature=1.0, seed=1, eos_ids=[]))
  assert out.tokens_bs.shape == (4, 7 + 8) and out.tokens_bs.dtype == np.int32
  assert out.prompt_mask_bp.sum(1).tolist() == [3, 7, 1, 2]
  for row, mask, prompt in zip(out.prompts_bp, out.prompt_mask_bp, PROMPTS):
    assert row[mask].tolist() == prompt and mask[-len(prompt) :].all()
  assert (out.completion_mask_bs == (np.arange(8) < 5)).all() and out.truncated_b.all()
  assert (out.behaviour_logprob_bs[:, 5:] == 0).all()


@pytest.mark.parametrize(
  "family, fields",
  [
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    ("qwen2", {"tie_word_embeddings": False}),
    (
      "llama",
      {
        "rope_parameters": {
          "rope_type": "llama3",
          "rope_theta": 1e4,
          "factor": 4.0,
          "low_freq_factor": 1.0,
          "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32,
        }
      },
    ),
  ],
)
def test_greedy_over_64_tokens_equals_transformers(tmp_path, family, fields):
  torch = pytest.importorskip("torch")
  from transformers import AutoConfig, AutoModelForCausalLM

  torch.manual_seed(0)
  sizes = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    eos_token_id=None,
    bos_token_id=None,
  )
  reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **fields})).eval()
  reference.save_pretrained(tmp_path)
  out = generate(
    models.load(tmp_path, dtype="float32"), PROMPTS, horizon=64, bucket=64, temperature=0.0, seed=0, eos_ids=[]
  )
  for prompt, ours in zip(PROMPTS, completions(out)):
    theirs = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64, pad_token_id=0)
    assert ours == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_behaviour_logprob_is_that_of_a_full_forward(model, temperature):
  out = generate(model, PROMPTS, horizon=12, bucket=16, temperature=temperature, top_p=0.8, seed=4, eos_ids=[1, 2])
  logprobs = np.asarray(out.behaviour_logprob_bs)
  for row, (prompt, tokens) in enumerate(zip(PROMPTS, completions(out))):
    logits = np.asarray(models.logits(model, [prompt + tokens]), np.float64)[0, len(prompt) - 1 : -1] / temperature
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs[row, : len(tokens)], exact[np.arange(len(tokens)), tokens], atol=1e-5)


def test_order_bucket_and_padding_change_no_token(model):
  settings = dict(horizon=10, temperature=1.0, seed=7, eos_ids=[0])
  expected = completions(generate(model, PROMPTS, bucket=10, **settings))
  assert completions(generate(model, PROMPTS[::-1], bucket=10, **settings))[::-1] == expected
  assert completions(generate(model, PROMPTS, bucket=32, **settings)) == expected
  longer = completions(generate(model, [*PROMPTS, list(range(1, 20))], bucket=10, **settings))
  assert longer[:4] == expected
  assert completions(generate(model, PROMPTS[2:3], bucket=10, **settings)) == expected[2:3]


def test_equal_prompts_in_one_batch_are_different_samples(model):
  rows = completions(generate(model, [PROMPTS[0]] * 6, horizon=10, bucket=10, temperature=1.0, seed=7, eos_ids=[]))
  assert len({tuple(row) for row in rows}) == 6


def test_every_horizon_runs_in_one_program_and_is_a_prefix_of_the_longest(model):
  settings = dict(bucket=16, temperature=1.0, seed=2, eos_ids=[0, 5])
  generation._table.cache_clear()
  longest = completions(generate(model, PROMPTS, horizon=16, **settings))
  for horizon in range(1, 17):
    out = generate(model, PROMPTS, horizon=horizon, **settings)
    assert completions(out) == [row[:horizon] for row in longest]
    ended = [len(row) <= horizon and row[-1] in (0, 5) for row in longest]
    assert (~np.asarray(out.truncated_b)).tolist() == ended
  (table,) = [generation._table(Sampling(1.0), (0, 5), 40, 0, None)]
  assert [(c.program, c.bucket) for c in table.compiles] == [("generate", 16)]


@settings(max_examples=15)
@given(st.sets(st.integers(0, 39), min_size=1, max_size=12), st.integers(0, 3))
def test_a_row_ends_with_the_first_end_of_sequence_inclusive(model, ends, seed):
  """pad = eos included: id 0 fills the buffer, and is among the ends in some examples."""
  free = completions(generate(model, PROMPTS, horizon=16, bucket=16, temperature=1.0, seed=seed, eos_ids=[]))
  ends = tuple(sorted(ends | {0}))[:1] if len(ends) < 3 else (0, 7, 21)  # few different programs to compile
  out = generate(model, PROMPTS, horizon=16, bucket=16, temperature=1.0, seed=seed, eos_ids=ends)
  for whole, cut, truncated in zip(free, completions(out), np.asarray(out.truncated_b)):
    at = next((i for i, token in enumerate(whole) if token in ends), None)
    assert cut == (whole if at is None else whole[: at + 1])
    assert truncated == (at is None)


def test_samples_of_a_prompt_share_a_prefill_and_equal_rows_of_their_own(model):
  table = ProgramTable()
  static = dict(sampling=Sampling(1.0), eos_ids=(0,), vocab_size=40)
  table.define("r", lambda *args, bucket: sample_completions(*args, bucket=bucket, **static))
  tokens, mask = pad_left(PROMPTS, 8)
  numbers = (np.int32(6), np.uint32(1), np.uint32(2))
  rows = np.arange(12, dtype=np.uint32)
  shared = table.run("r", 8, model, tokens, mask, *numbers, rows)
  apart = table.run("r", 8, model, np.repeat(tokens, 3, 0), np.repeat(mask, 3, 0), *numbers, rows)
  assert completions(shared) == completions(apart)
  assert np.array_equal(shared.tokens_bs, apart.tokens_bs)


def test_step_and_seed_change_the_samples_and_nothing_else_does(model):
  table = ProgramTable()
  static = dict(sampling=Sampling(1.0), eos_ids=(), vocab_size=40)
  table.define("r", lambda *args, bucket: sample_completions(*args, bucket=bucket, **static))
  tokens, mask = pad_left(PROMPTS, 8)
  rows = np.arange(4, dtype=np.uint32)

  def run(seed, step, rows=rows):
    return completions(table.run("r", 8, model, tokens, mask, np.int32(8), np.uint32(seed), np.uint32(step), rows))

  assert run(1, 2) == run(1, 2)
  assert run(1, 2) != run(1, 3) and run(1, 2) != run(2, 2)
  # Each row has a key of its own: changing one row's leaves the other rows alone.
  changed = run(1, 2, np.array([0, 1, 99, 3], np.uint32))
  assert [changed[i] == run(1, 2)[i] for i in range(4)] == [True, True, False, True]


@pytest.mark.parametrize("horizon, prompts", [(0, PROMPTS), (9, PROMPTS), (4, [[1], []]), (4, [])])
def test_impossible_requests_are_refused(model, horizon, prompts):
  with pytest.raises(ValueError):
    generate(model, prompts, horizon=horizon, bucket=8, temperature=1.0, seed=0, eos_ids=[])


def test_stages_of_attended_slots_change_no_token(model, monkeypatch):
  assert sampler_module.stage_widths(7, 300) == (256, 384)  # of 128, 256 and 300 new tokens: whole tiles
  assert sampler_module.stage_widths(7, 100) == (106,)
  settings = dict(horizon=280, bucket=300, temperature=1.0, seed=5, eos_ids=[])
  generation._table.cache_clear()
  staged = completions(generate(model, PROMPTS, **settings))
  generation._table.cache_clear()
  monkeypatch.setattr(sampler_module, "stage_widths", lambda prompt, bucket: (prompt - 1 + bucket,))
  assert completions(generate(model, PROMPTS, **settings)) == staged
  generation._table.cache_clear()


def test_a_sharded_batch_looks_for_its_end_rarely_and_writes_the_same(model, monkeypatch):
  """One device looks after every token. Rows that are done write nothing while the others, or nobody, go on."""
  settings = dict(horizon=30, bucket=32, temperature=1.0, seed=9, eos_ids=list(range(0, 40, 3)))
  prompts = [[i + 1, i + 2] for i in range(8)]
  alone = jax.device_get(generate(model, prompts, **settings))
  mesh = make_mesh((4, 1, 2), jax.devices()[:8])
  sharded = models.initialize(model.config, jax.random.key(3), "float32", mesh)
  spread = jax.device_get(generate(sharded, prompts, **settings))
  assert alone.completion_mask_bs.sum(1).max() < 30  # all end before the horizon: the loop itself has to
  assert np.array_equal(alone.tokens_bs, spread.tokens_bs)
  assert np.array_equal(alone.completion_mask_bs, spread.completion_mask_bs)
  np.testing.assert_allclose(alone.behaviour_logprob_bs, spread.behaviour_logprob_bs, atol=1e-5)


@pytest.mark.parametrize("shape, rows", [((1, 1, 1), 16), ((4, 1, 2), 16), ((1, 2, 2), 12), ((1, 1, 1), 3)])
def test_rows_that_leave_when_they_are_done_change_no_token(model, shape, rows):
  """Some end at once and some never; every row comes back to its place, whoever left before it."""
  settings = dict(horizon=30, bucket=32, temperature=1.0, seed=9, eos_ids=list(range(0, 40, 5)))
  prompts = [[i + 1, i + 2] for i in range(rows)]
  expected = jax.device_get(generate(model, prompts, **settings))
  lengths = np.sort(expected.completion_mask_bs.sum(1))
  assert lengths[0] < lengths[rows // 2] < lengths[-1]
  if shape != (1, 1, 1):
    model = models.initialize(
      model.config, jax.random.key(3), "float32", make_mesh(shape, jax.devices()[: math.prod(shape)])
    )
  compacted = jax.device_get(generate(model, prompts, compactions=3, **settings))
  assert np.array_equal(compacted.tokens_bs, expected.tokens_bs)
  assert np.array_equal(compacted.completion_mask_bs, expected.completion_mask_bs)
  assert np.array_equal(compacted.truncated_b, expected.truncated_b)
  assert np.array_equal(compacted.prompt_mask_bp, expected.prompt_mask_bp)
  np.testing.assert_allclose(compacted.behaviour_logprob_bs, expected.behaviour_logprob_bs, atol=1e-5)


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12))
def test_rows_return_where_they_were_taken_from(done, count):
  done_r, count = np.array(done), min(count, len(done))
  kept_dk = compaction.choose(done_r, count)
  assert kept_dk.shape == (1, count)
  assert done_r[kept_dk[0]].sum() == max(0, count - (~done_r).sum())  # rows that are done only where others are short
  array = np.arange(2 * len(done)).reshape(-1, 2)
  assert np.array_equal(compaction.take(array, kept_dk), array[np.asarray(kept_dk[0])])
  assert np.array_equal(compaction.put(array, kept_dk, compaction.take(array, kept_dk)), array)


def test_rows_leave_without_a_key_travelling(model):
  """On a mesh each device halves its own rows: no collective carries a cache, in the first batch or in the next."""
  mesh = make_mesh((2, 2, 2), jax.devices()[:8])
  model = models.initialize(model.config, jax.random.key(3), "float32", mesh)
  table, bucket, rows = ProgramTable(mesh), 32, 16
  static = dict(sampling=Sampling(1.0), eos_ids=(0,), vocab_size=40, compactions=1)
  table.define("r", lambda *args, bucket: sample_completions(*args, bucket=bucket, **static))
  arrays = place_rows(mesh, (*pad_left([[1, 2]] * rows, 8), np.arange(rows, dtype=np.uint32)))
  text = table.compile("r", bucket, model, *arrays[:2], np.int32(32), np.uint32(1), np.uint32(2), arrays[2]).as_text()
  config, slots = model.config, sampler_module.stage_widths(8, bucket)[-1]
  for rows_of_device in (4, 2):  # 16 rows on data x fsdp = 4 devices, and half of them
    cache = f"[{config.layers},{rows_of_device},{config.kv_heads // 2},{slots},{config.head_dim}]"
    assert f"f32{cache}" in text
  for line in re.findall(r".* = .*(?:all-gather|all-reduce|all-to-all|collective-permute)\(.*", text):
    assert f",{slots}," not in line and f",{slots}]" not in line, line


def test_no_step_and_no_layer_copies_the_cache(model):
  """Arrays of the cache's shape are made before the loops: inside they are updated and read, never copied."""
  table, bucket = ProgramTable(), 300
  static = dict(sampling=Sampling(1.0), eos_ids=(0,), vocab_size=40)
  table.define("r", lambda *args, bucket: sample_completions(*args, bucket=bucket, **static))
  numbers = (np.int32(300), np.uint32(1), np.uint32(2), np.arange(4, dtype=np.uint32))
  text = table.compile("r", bucket, model, *pad_left(PROMPTS, 8), *numbers).as_text()
  loops = text[: text.index("\nENTRY ")]
  config, slots = model.config, sampler_module.stage_widths(8, bucket)[-1]
  for shape in ((config.head_dim, slots), (slots, config.head_dim)):
    cache = re.escape(f"f32[{config.layers},4,{config.kv_heads},{shape[0]},{shape[1]}]")
    assert re.search(rf"= {cache}\S* dynamic-update-slice\(", loops)
    assert not re.search(rf"= {cache}\S* copy\(", loops)
