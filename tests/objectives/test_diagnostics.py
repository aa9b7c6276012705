"""What is logged of a signal, against numpy over each response."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.config import from_config_dict
from opd_jax.objectives import Reading, Signals, TokenWeights, diagnose, make_objective, repetition

B, S, D, V = 5, 11, 8, 30
EOS = (3, 7)


def log_softmax(logits):
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_every_number_is_a_mean_over_the_tokens_that_it_names():
  rng = np.random.default_rng(0)
  hidden, head, teacher_hidden, teacher_head = (rng.normal(size=s) for s in ((B, S, D), (V, D), (B, S, D), (V, D)))
  lengths = np.array([9, 1, 4, 7, 9])  # nobody gets to the last two columns
  mask = np.arange(S) < lengths[:, None]
  tokens = rng.integers(0, V, (B, S))
  config = from_config_dict({"objective": {"temperature": 0.8, "support": "teacher", "top_k": 4}}, check=False)
  objective = make_objective(config.objective, V)

  def run(*arrays):
    hidden, head, teacher_hidden, teacher_head = arrays
    mask_bs, tokens_bs = jnp.asarray(mask), jnp.asarray(tokens)
    positions_bs = jnp.broadcast_to(jnp.arange(S), (B, S))
    weights_bs = TokenWeights()(tokens_bs, mask_bs)
    signals = Signals(tokens_bs, positions_bs, mask_bs, weights_bs, jnp.zeros((B, S)))
    loss = objective(Reading(hidden, head), Reading(teacher_hidden, teacher_head), signals)
    return loss.result.per_token, diagnose(objective, loss, jnp.int32(9), EOS)

  per_token, metrics = jax.jit(run)(*(x.astype(np.float32) for x in (hidden, head, teacher_hidden, teacher_head)))
  got = {name: metric.to_float() for name, metric in metrics.items()}
  log_p, log_q = log_softmax(hidden @ head.T / 0.8), log_softmax(teacher_hidden @ teacher_head.T / 0.8)
  entropies = {name: -(np.exp(log) * log).sum(-1) for name, log in (("student", log_p), ("teacher", log_q))}
  part = np.arange(S) * 8 // 9
  for name, values in (
    ("loss_by_position", np.asarray(per_token)),
    ("student_entropy_by_position", entropies["student"]),
    ("teacher_entropy_by_position", entropies["teacher"]),
  ):
    wanted = [values[mask & (part == i)].mean() if (mask & (part == i)).any() else np.nan for i in range(8)]
    np.testing.assert_allclose(got[name], wanted, rtol=1e-4)
  ratio = np.take_along_axis(log_p - log_q, tokens[..., None], -1)[..., 0][mask]
  np.testing.assert_allclose(got["log_ratio"], ratio.mean(), rtol=1e-4)
  np.testing.assert_allclose(got["log_ratio_tails"], [(ratio > tail).mean() for tail in (2, 5, 10)], rtol=1e-6)
  np.testing.assert_allclose(got["student_eos"], np.exp(log_p)[..., EOS].sum(-1)[mask].mean(), rtol=1e-4)
  np.testing.assert_allclose(got["teacher_eos"], np.exp(log_q)[..., EOS].sum(-1)[mask].mean(), rtol=1e-4)
  inside = np.argsort(np.argsort(-log_q, axis=-1), axis=-1) < 4
  np.testing.assert_allclose(got["teacher_mass"], (np.exp(log_q) * inside).sum(-1)[mask].mean(), rtol=1e-4)
  np.testing.assert_allclose(
    got["overlap"], (np.minimum(np.exp(log_p), np.exp(log_q)) * inside).sum(-1)[mask].mean(), rtol=1e-4
  )


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), max_size=10), min_size=1, max_size=4))
def test_repetition_counts_runs_of_four_that_came_before(rows):
  tokens, mask = np.zeros((len(rows), 10), np.int32), np.zeros((len(rows), 10), bool)
  again = total = 0
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    again, total = again + len(grams) - len(set(grams)), total + len(grams)
  ratio = repetition(jnp.asarray(tokens), jnp.asarray(mask))
  assert (float(ratio.total), float(ratio.count)) == (again, total)


def test_completions_shorter_than_a_run_repeat_nothing():
  assert float(repetition(jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)).count) == 0
