"""Responses cut where the teacher's margin drops: the rule against plain loops, the gradient against dense float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.objectives import Cut, MarginDrop, Reading, Signals, TokenWeights, make_margin_drop, make_objective

B, S, D, E, V = 8, 22, 8, 12, 30
WINDOW, THRESHOLD = 4, 2.0  # the last look of 22 columns has two of padding
UNIFORM, DROP = TokenWeights(), MarginDrop(WINDOW, THRESHOLD, (8, 16, 32))
CHANGES = np.array([8, 4, 12, 99, 99, 8, 0, 8])  # where the teacher stops to agree with the student
LENGTHS = np.array([22, 22, 22, 22, 9, 11, 22, 13])


def cut_by_hand(margin, mask, window, threshold):
  """(kept [B, S], found [B], drops after the last look [B]) by the definition, a row and a look at a time."""
  kept, found, last = np.zeros(margin.shape, bool), np.zeros(len(margin), bool), np.zeros(len(margin))
  for row in range(len(margin)):
    drops = 0.0
    for start in range(0, margin.shape[1], window):
      kept[row, start : start + window] = not found[row]
      now, before = margin[row, start : start + window], margin[row, :start]
      if len(now) < window or not mask[row, start : start + window].all():
        continue
      if start:
        error = np.sqrt(before.var() / len(before) + now.var() / window + 1e-6)
        drops = max(0.0, drops + min((before.mean() - now.mean()) / error, 3.0) - 0.5)
      found[row] |= drops > threshold
    last[row] = drops
  return kept, found, last


def test_the_sum_of_drops_is_that_of_a_loop():
  """Two hundred rows of margins that fall somewhere by something, or nowhere."""
  rng, rows, width = np.random.default_rng(0), 200, 48
  falls = rng.choice([0.0, 0.5, 2.0], rows)[:, None] * (np.arange(width) >= rng.integers(0, width, rows)[:, None])
  margin = rng.normal(-0.3, rng.uniform(0, 1, rows)[:, None], (rows, width)) - falls
  mask = np.arange(width) < rng.integers(1, width + 1, rows)[:, None]
  drop = MarginDrop(8, 2.0, ())
  past, kept = drop.begin(rows), []
  for start in range(0, width, 8):
    kept += [~np.asarray(past.found_b)[:, None]] * 8
    past = drop.look(past, jnp.asarray(margin[:, start : start + 8], jnp.float32), mask[:, start : start + 8])
  wanted, found, last = cut_by_hand(margin, mask, 8, 2.0)
  np.testing.assert_allclose(past.drops_b, last, rtol=1e-3, atol=1e-3)
  np.testing.assert_array_equal(past.found_b, found)
  np.testing.assert_array_equal(np.concatenate(kept, axis=1), wanted)
  assert 20 < found.sum() < 180


def test_equal_models_differ_by_rounding_and_are_never_cut():
  drop, rng = MarginDrop(4, 1.0, ()), np.random.default_rng(0)
  past = drop.begin(16)
  for look in range(12):
    noise = rng.normal(-1e-6 * look, 1e-7, (16, 4))
    past = drop.look(past, jnp.asarray(noise, jnp.float32), jnp.ones((16, 4), bool))
  assert not past.found_b.any()


@pytest.fixture(scope="module")
def batch():
  """Readings in which the teacher is near the student up to each row's change and elsewhere from there on."""
  rng = np.random.default_rng(1)
  hidden, head = rng.normal(size=(B, S, D)), rng.normal(size=(V, D))
  teacher_head = np.concatenate([head, rng.normal(size=(V, E - D))], axis=1)
  noise = np.where(np.arange(S) < CHANGES[:, None], 0.05, 2.0)[..., None]
  teacher = np.concatenate([hidden, np.zeros((B, S, E - D))], axis=2) + noise * rng.normal(size=(B, S, E))
  tokens = (hidden @ head.T + rng.gumbel(size=(B, S, V))).argmax(-1).astype(np.int32)  # drawn by the student
  return (hidden, head, teacher, teacher_head), tokens, np.arange(S) < LENGTHS[:, None]


def run(batch, weigh=UNIFORM, drop=DROP, **fields):
  """((value, Loss), gradient in the student's hidden states and head)."""
  arrays, tokens, mask = batch
  hidden, head, teacher, teacher_head = (jnp.asarray(array, jnp.float32) for array in arrays)
  objective = make_objective(from_config_dict({"objective": fields}, check=False).objective, V, drop)
  positions = jnp.broadcast_to(jnp.arange(S), (B, S))
  weights = weigh(jnp.asarray(tokens), jnp.asarray(mask))
  signals = Signals(jnp.asarray(tokens), positions, jnp.asarray(mask), weights, jnp.zeros((B, S)))

  def loss(hidden, head):
    answer = objective(Reading(hidden, head), Reading(teacher, teacher_head), signals)
    return answer.value, answer

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)


def at(log, tokens):
  return jnp.take_along_axis(log, tokens[..., None], axis=-1)[..., 0]


def define(batch, weights, per_token):
  """Value, gradient, kept tokens and rows found: dense and float64, the weights cut by the loop above."""
  arrays, tokens, mask = batch
  with jax.enable_x64(True):
    hidden, head, teacher, teacher_head = map(jnp.asarray, arrays)
    log_q = jax.nn.log_softmax(teacher @ teacher_head.T)
    margin = np.asarray(at(log_q, tokens) - at(jax.nn.log_softmax(hidden @ head.T), tokens))
    kept, found, _ = cut_by_hand(margin, mask, WINDOW, THRESHOLD)

    def loss(hidden, head):
      log_p = jax.nn.log_softmax(hidden @ head.T)
      return jnp.where(mask & kept, jnp.asarray(weights) * per_token(log_p, log_q, tokens, mask), 0).sum()

    return *jax.value_and_grad(loss, argnums=(0, 1))(hidden, head), kept, found


def policy_gradient(log_p, log_q, tokens, mask):
  """Returns of the whole response, also where what follows is cut."""
  fixed = jax.lax.stop_gradient
  reward = jnp.where(mask, fixed(at(log_q, tokens) - at(log_p, tokens)), 0)
  returns = jnp.stack([sum(0.5 ** (u - t) * reward[:, u] for u in range(t, S)) for t in range(S)], axis=1)
  value = at(log_p, tokens)
  return fixed(-reward) - returns * (value - fixed(value))


DEFINITIONS = {
  "reverse_kl": lambda p, q, t, m: (jnp.exp(p) * (p - q)).sum(-1),
  "forward_kl": lambda p, q, t, m: (jnp.exp(q) * (q - p)).sum(-1),
  "sampled": policy_gradient,
  "sampled + 0.5*reverse_kl": lambda p, q, t, m: policy_gradient(p, q, t, m) + 0.5 * (jnp.exp(p) * (p - q)).sum(-1),
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_value_and_gradient_are_those_of_the_tokens_before_the_cut(batch, kind):
  _, tokens, mask = batch
  weigh = TokenWeights(all_of=(3,))
  weights = np.where(mask & (tokens != 3), 1.0, 0.0) / (mask & (tokens != 3)).sum()
  (value, loss), gradient = run(batch, weigh, kind=kind, gamma=0.5)
  wanted, exact, kept, found = define(batch, weights, DEFINITIONS[kind])
  assert 0 < found.sum() < B and 0 < (mask & ~kept).sum() < mask.sum() / 2
  np.testing.assert_array_equal(loss.cut.kept_bs & mask, kept & mask)
  np.testing.assert_array_equal(loss.cut.found_b, found)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  for got, one in zip(gradient, exact):
    np.testing.assert_allclose(got, one, atol=3e-6 * np.abs(one).max())


def test_without_a_drop_it_is_the_loss_as_it_was(batch):
  (value, loss), gradient = run(batch, drop=MarginDrop(WINDOW, 1e9, ()), kind="jsd")
  (expected, plain), exact = run(batch, drop=None, kind="jsd")
  assert not loss.cut.found_b.any() and loss.cut.kept_bs.all() and plain.cut is None
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for got, one in zip((*gradient, loss.result.per_token), (*exact, plain.result.per_token)):
    np.testing.assert_allclose(got, one, atol=1e-6)


def test_nothing_is_multiplied_that_was_not_before(batch):
  """As many products are written into the program with the cut as without, forward and backward."""

  def products(drop):
    arrays, tokens, mask = batch
    hidden, head, teacher, teacher_head = (jnp.asarray(array, jnp.float32) for array in arrays)
    objective = make_objective(from_config_dict({}, check=False).objective, V, drop)
    weights = UNIFORM(jnp.asarray(tokens), jnp.asarray(mask))
    signals = Signals(jnp.asarray(tokens), jnp.zeros((B, S), jnp.int32), jnp.asarray(mask), weights, jnp.zeros((B, S)))

    def loss(hidden, head):
      return objective(Reading(hidden, head), Reading(teacher, teacher_head), signals).value

    return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, head)).count("dot_general")

  assert products(DROP) == products(None) > 0


def test_eight_devices_cut_and_learn_as_one(batch):
  (value, loss), gradient = run(batch, kind="reverse_kl")
  with jax.set_mesh(make_mesh((2, 2, 2), jax.devices()[:8])):
    (same, parted), exact = run(batch, kind="reverse_kl")
  np.testing.assert_array_equal(parted.cut.kept_bs, loss.cut.kept_bs)
  np.testing.assert_allclose(same, value, rtol=1e-5)
  for got, one in zip(gradient, exact):
    np.testing.assert_allclose(got, one, atol=1e-6)


def test_metrics_say_what_a_horizon_must_hold():
  """Cut after 8 of 20; ended at 6; cut off by the horizon at 20; cut within its last look, at 12, and ended there."""
  kept = np.ones((4, 24), bool)
  kept[0, 8:] = False
  mask = np.arange(24) < np.array([20, 6, 20, 12])[:, None]
  cut = Cut(jnp.asarray(kept), jnp.asarray([True, False, False, True]))
  truncated = jnp.asarray([True, False, True, False])
  got = MarginDrop(4, 2.0, (4, 8, 16, 24)).metrics(cut, jnp.asarray(mask), truncated)
  got = {name: metric.to_float() for name, metric in got.items()}
  assert got == {"cut": 0.5, "cut_tokens": pytest.approx(12 / 58), "needed_by_rung": [0.0, 0.5, 0.75, 0.75]}


def test_a_config_brings_it_along():
  values = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}
  horizon = {"kind": "change_point", "max": 64, "start": 16, "buckets": (16, 32, 64), "window": 8, "threshold": 3.0}
  config = from_config_dict(values | {"horizon": horizon})
  assert make_margin_drop(config) == MarginDrop(8, 3.0, (16, 32, 64))
  full = dataclasses.replace(config, horizon=dataclasses.replace(config.horizon, kind="full"))
  assert make_margin_drop(full) is None
