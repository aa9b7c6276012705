"""What an update reads beside the rollout: against dense definitions, row by row and without padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opd_jax import models
from opd_jax.config import from_config_dict
from opd_jax.objectives import TokenWeights, make_objective
from opd_jax.rollout import Rollout
from opd_jax.training.batch import Answers, Batch, Prompts, draw_rows, lay_out_answers
from opd_jax.training.state import Frozen, TrainState
from opd_jax.training.step import update

VOCAB, B, P, Q, S = 40, 4, 4, 7, 5
RATE, EMA = 0.5, 0.25


def small_model(width, seed):
  config = {
    "model_type": "qwen2",
    "vocab_size": VOCAB,
    "hidden_size": width,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(seed), "float32")


def masked(rng, width, *, left=False):
  """Tokens [B, width] and a mask that leaves 2 or all of a row's columns."""
  kept = np.arange(width) < np.where(np.arange(B) % 2, 2, width)[:, None]
  tokens = rng.integers(0, VOCAB, (B, width)).astype(np.int32)
  return jnp.asarray(tokens), jnp.asarray(kept[:, ::-1] if left else kept)


@pytest.fixture(scope="module")
def written():
  rng = np.random.default_rng(0)
  (prompts, prompt_mask), (completions, mask) = masked(rng, P, left=True), masked(rng, S)
  return Rollout(
    tokens_bs=jnp.concatenate([prompts, completions], axis=1),
    prompt_mask_bp=prompt_mask,
    completion_mask_bs=mask,
    truncated_b=jnp.array([True, False, True, False]),
    behaviour_logprob_bs=jnp.where(mask, -1.0, 0.0),
  )


@pytest.fixture(scope="module")
def answers():
  tokens, mask = masked(np.random.default_rng(1), S)
  return Answers(jnp.array([False, True, True, False]), tokens[::-1], mask[::-1], jnp.array([True, True, False, False]))


@pytest.fixture(scope="module")
def teacher_prompts():
  return Prompts(*masked(np.random.default_rng(2), Q, left=True))


def step(student, frozen, batch, *, kind="reverse_kl", teacher=None, micro_batches=1):
  """The state after one step of gradient descent, the gradient that it took, and metrics."""
  descent = optax.sgd(RATE)
  keep = optax.GradientTransformation(
    lambda params: (jax.tree.map(jnp.zeros_like, params), descent.init(params)),
    lambda gradient, state, params: (descent.update(gradient, state[1])[0], (gradient, state[1])),
  )
  run = functools.partial(
    update,
    bucket=S,
    objective=make_objective(from_config_dict({"objective": {"kind": kind}}, check=False).objective, VOCAB),
    token_weights=TokenWeights(),
    eos_ids=(0,),
    optimizer=keep,
    dtype=jnp.float32,
    micro_batches=micro_batches,
    remat=False,
    teacher_dtype=jnp.float32,
    ema=EMA,
    skip_above=0.0,
    compare_decoding=True,
  )
  state = TrainState(student, keep.init(student.params), jnp.int32(0), teacher)
  state, metrics = jax.jit(run)(state, frozen, batch)
  return state, state.opt_state[0], {name: metric.to_float() for name, metric in metrics.items()}


def log_probs(model, prompt, completion):
  """[T, V] of the tokens of a completion, each from what comes before it."""
  tokens = jnp.concatenate([prompt, completion])[None]
  hidden, _ = models.forward(model, tokens, jnp.arange(tokens.shape[1])[None], jnp.ones(tokens.shape, bool))
  return jax.nn.log_softmax(hidden[0, len(prompt) - 1 : -1] @ model.head_vd.T)


def dense(student, rollout, per_token, *others):
  """Mean over all tokens of per_token(log p [T, V], tokens, log q of each of `others`: (model, prompts)), and its
  gradient."""
  rollout, *seen = jax.device_get((rollout, *(prompts for _, prompts in others)))
  seen = [Prompts(rollout.prompts_bp, rollout.prompt_mask_bp), *seen]

  def loss(params):
    model, total, count = dataclasses.replace(student, params=params), 0.0, 0
    for r in range(B):
      tokens = rollout.completions_bs[r][rollout.completion_mask_bs[r]]
      prompts = [prompt.tokens_bp[r][prompt.mask_bp[r]] for prompt in seen]
      log_p, *log_q = (log_probs(m, prompt, tokens) for m, prompt in zip([model, *(m for m, _ in others)], prompts))
      total, count = total + per_token(log_p, tokens, *log_q).sum(), count + len(tokens)
    return total / count

  return jax.jit(jax.value_and_grad(loss))(student.params)


def reverse_kl(log_p, tokens, log_q):
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def assert_close(a, b, tolerance=1e-5):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance * scale)


def by_hand(written, answers):
  """The rollout with the answers in their rows, one row after the other."""
  rows = [
    (answers.tokens_bs[r], answers.mask_bs[r], answers.truncated_b[r])
    if answers.from_data_b[r]
    else (written.completions_bs[r], written.completion_mask_bs[r], written.truncated_b[r])
    for r in range(B)
  ]
  tokens, mask, truncated = map(jnp.stack, zip(*rows))
  tokens = jnp.concatenate([written.prompts_bp, tokens], axis=1)
  return dataclasses.replace(written, tokens_bs=tokens, completion_mask_bs=mask, truncated_b=truncated)


def test_answers_and_the_teachers_own_prompts_give_the_dense_gradient(written, answers, teacher_prompts):
  student, teacher = small_model(16, 0), small_model(24, 1)
  mixed = by_hand(written, answers)
  batch = Batch(written, answers, teacher_prompts)
  _, gradient, metrics = step(student, Frozen(teacher), batch, micro_batches=2)
  loss, wanted = dense(student, mixed, reverse_kl, (teacher, teacher_prompts))
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert_close(gradient, wanted)
  assert metrics["tokens"] == mixed.completion_mask_bs.sum()
  assert metrics["truncated"] == float(mixed.truncated_b.mean())
  assert metrics["dataset_rows"] == 2
  # Only what the student wrote is compared with what it was when it wrote: rows 0 and 3.
  gaps = []
  for r in (0, 3):
    prompt, tokens = written.prompts_bp[r][written.prompt_mask_bp[r]], written.completions_bs[r]
    tokens = tokens[written.completion_mask_bs[r]]
    gaps += list(np.abs(np.asarray(log_probs(student, prompt, tokens))[np.arange(len(tokens)), tokens] + 1.0))
  assert metrics["decode_gap"] == pytest.approx(np.mean(gaps), rel=1e-5)


def test_the_data_set_alone_is_supervised_distillation(written, answers):
  student, teacher = small_model(16, 0), small_model(24, 1)
  alone = answers._replace(from_data_b=jnp.ones(B, bool))
  _, gradient, metrics = step(student, Frozen(teacher), Batch(written, alone), kind="forward_kl")

  def forward_kl(log_p, tokens, log_q):
    return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)

  prompts = Prompts(written.prompts_bp, written.prompt_mask_bp)
  loss, wanted = dense(student, by_hand(written, alone), forward_kl, (teacher, prompts))
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert_close(gradient, wanted)
  assert np.isnan(metrics["decode_gap"]) and metrics["dataset_rows"] == B


def test_a_reference_moves_the_reward_as_g_opd_says(written):
  """A = lambda (log q - log ref) - (log p - log ref), at 1.25."""
  student, teacher, reference = small_model(16, 0), small_model(24, 1), small_model(8, 2)
  _, gradient, _ = step(student, Frozen(teacher, reference), Batch(written), kind="extrapolated")

  def policy(log_p, tokens, log_q, log_ref):
    p, q, ref = (log[jnp.arange(len(tokens)), tokens] for log in (log_p, log_q, log_ref))
    return -jax.lax.stop_gradient(1.25 * (q - ref) - (p - ref)) * p

  prompts = Prompts(written.prompts_bp, written.prompt_mask_bp)
  _, wanted = dense(student, written, policy, (teacher, prompts), (reference, prompts))
  assert_close(gradient, wanted)


def test_a_teacher_that_follows_scores_first_and_moves_then(written):
  student, teacher = small_model(16, 0), small_model(16, 1)
  state, gradient, metrics = step(student, Frozen(None), Batch(written), teacher=teacher)
  prompts = Prompts(written.prompts_bp, written.prompt_mask_bp)
  loss, wanted = dense(student, written, reverse_kl, (teacher, prompts))
  assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert_close(gradient, wanted)
  moved = jax.tree.map(lambda p, g: np.float64(p) - RATE * np.float64(g), student.params, gradient)
  followed = jax.tree.map(lambda old, new: 0.75 * np.float64(old) + 0.25 * new, teacher.params, moved)
  assert_close(state.student.params, moved, 1e-6)
  assert_close(state.teacher.params, followed, 1e-6)


def test_without_answers_the_rollout_is_what_trains(written):
  assert Batch(written).mixed() is written


def test_rows_are_drawn_with_their_probability_from_seed_step_and_row():
  draws = np.stack([draw_rows(0.3, 5, step, 16) for step in range(500)])
  np.testing.assert_allclose(draws.mean(0), 0.3, atol=0.1)  # 5 standard deviations of a row's mean
  assert abs(draws.mean() - 0.3) < 0.026
  assert len(np.unique(draws, axis=0)) > 300  # each step its own
  np.testing.assert_array_equal(draw_rows(0.3, 5, 7, 4), draws[7, :4])
  assert (draw_rows(0.3, 6, 7, 16) != draws[7]).any()
  assert draw_rows(1.0, 0, 0, 1000).all() and not draw_rows(0.0, 0, 0, 1000).any()


def test_answers_end_at_the_horizon_and_rows_not_drawn_are_empty():
  ids = [(7, 8, 9, 0), (5, 0), (6, 6, 0), (1, 2, 0)]
  got = lay_out_answers(ids, np.array([True, True, False, True]), bucket=5, horizon=3)
  np.testing.assert_array_equal(got.tokens_bs, [[7, 8, 9, 0, 0], [5, 0, 0, 0, 0], [0] * 5, [1, 2, 0, 0, 0]])
  np.testing.assert_array_equal(got.mask_bs.sum(1), [3, 2, 0, 3])
  np.testing.assert_array_equal(got.truncated_b, [True, False, False, False])
