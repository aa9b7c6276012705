"""The sampled-token estimators: against numpy transcriptions, float64 autodiff and enumeration of whole sequences."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.objectives.policy_gradient import PolicyGradient, clipped_surrogate, return_to_go
from opd_jax.objectives.term import OWN_TOKENS, SCORES, Signals


def baseline(new, old, teacher, mask, gamma, clip, dual_clip, largest):
  """The released baseline, token by token: advantage, ratio, clip, dual clip, mean over all tokens. Its loss and its
  derivative in every log-prob of the student."""
  loss, slope, cut = np.zeros_like(new), np.zeros_like(new), np.zeros(new.shape, bool)
  for row in range(new.shape[0]):
    length = int(mask[row].sum())
    for t in range(length):
      advantage = sum(gamma ** (k - t) * (teacher[row, k] - old[row, k]) for k in range(t, length))
      if largest:
        advantage = min(max(advantage, -largest), largest)
      ratio = np.exp(new[row, t] - old[row, t])
      plain, clipped = -advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip)
      chosen = max(plain, clipped)
      moves = plain >= clipped or clipped == plain
      if dual_clip and advantage < 0 and chosen > -advantage * dual_clip:
        chosen, moves = -advantage * dual_clip, False
      loss[row, t] = chosen
      slope[row, t] = -advantage * ratio if moves else 0.0
      cut[row, t] = not moves and advantage != 0
  return loss / mask.sum(), slope / mask.sum(), cut


def arrays(seed, rows=4, width=6):
  rng = np.random.default_rng(seed)
  mask = np.arange(width) < rng.integers(1, width + 1, rows)[:, None]
  old, teacher = -rng.exponential(1.0, (2, rows, width))
  new = old + rng.normal(0, 0.5, (rows, width))
  return new, old, teacher, mask


def signals_of(new, old, teacher, mask):
  return Signals(
    tokens_bs=jnp.zeros(mask.shape, jnp.int32),
    positions_bs=jnp.zeros(mask.shape, jnp.int32),
    mask_bs=jnp.asarray(mask),
    weights_bs=jnp.asarray(mask / mask.sum()),
    behaviour_logprob_bs=jnp.asarray(old),
    student_logprob_bs=jnp.asarray(new),
    teacher_logprob_bs=jnp.asarray(teacher),
  )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("clip", "dual_clip", "largest"), [(0.2, 3.0, 0.0), (0.1, 0.0, 0.0), (0.3, 1.5, 1.0)])
def test_released_baseline(gamma, clip, dual_clip, largest):
  """2603.25562's code: k1 as advantage, PPO's ratio, clip 0.2, dual clip 3, mean over tokens."""
  for seed in range(5):
    new, old, teacher, mask = arrays(seed)
    with jax.enable_x64(True):
      (call,) = PolicyGradient(gamma, clip, dual_clip, largest).calls(signals_of(new, old, teacher, mask))
      advantages = return_to_go(jnp.asarray(np.where(mask, teacher - old, 0)), gamma)
      advantages = jnp.clip(advantages, -largest, largest) if largest else advantages
      loss = clipped_surrogate(jnp.asarray(new), jnp.asarray(old), advantages, clip, dual_clip)
    wanted, slope, cut = baseline(new, old, teacher, mask, gamma, clip, dual_clip, largest)
    np.testing.assert_allclose(np.where(mask, loss, 0) / mask.sum(), wanted, rtol=1e-9, atol=1e-12)
    # The op's gradient of a token is - weight * advantage * d log p.
    np.testing.assert_allclose(-call.weights_bs * call.advantages_bs, slope, rtol=1e-9, atol=1e-12)
    assert np.array_equal(call.shown["clipped"] & mask, cut)
    assert cut.any() and not cut[mask].all()


def test_what_is_not_asked_for_is_not_computed():
  mask = arrays(0)[3]
  bare = Signals(
    *2 * [jnp.zeros(mask.shape, jnp.int32)], jnp.asarray(mask), jnp.ones(mask.shape), jnp.zeros(mask.shape)
  )
  assert PolicyGradient().needs == {OWN_TOKENS}
  (call,) = PolicyGradient().calls(bare)
  assert call.kind == "sampled" and call.advantages_bs is None
  assert PolicyGradient(gamma=0.5).needs == {OWN_TOKENS, SCORES}


def test_extrapolation_is_that_of_g_opd():
  """A = -[(log p - log ref) - lambda (log q - log ref)]; lambda = 1 is plain OPD, whatever the reference."""
  new, old, teacher, mask = arrays(1)
  reference = -np.random.default_rng(9).exponential(1.0, mask.shape)
  signals = signals_of(new, old, teacher, mask)
  signals = dataclasses.replace(signals, reference_logprob_bs=jnp.asarray(reference))
  (call,) = PolicyGradient(extrapolation=1.25).calls(signals)
  wanted = -((new - reference) - 1.25 * (teacher - reference))
  np.testing.assert_allclose(np.asarray(call.advantages_bs)[mask], wanted[mask], rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_return_to_go_is_its_sum(seed, gamma):
  rng = np.random.default_rng(seed)
  reward = rng.normal(size=(3, rng.integers(1, 9)))
  wanted = [[sum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))] for row in reward]
  np.testing.assert_allclose(return_to_go(jnp.asarray(reward, jnp.float32), gamma), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_expectation_over_all_sequences(gamma):
  """gamma = 1 is the gradient of the sequences' KL; gamma = 0 that of the tokens' KLs with the prefixes held fixed.

  A student with a table of logits for every prefix, three tokens, three steps: every sequence is enumerated.
  """
  V, T = 3, 3
  rng = np.random.default_rng(0)
  prefixes = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
  index = {p: i for i, p in enumerate(prefixes)}
  theta, phi = rng.normal(size=(2, len(prefixes), V))
  sequences = list(itertools.product(range(V), repeat=T))
  rows = np.array([[index[s[:t]] for t in range(T)] for s in sequences])
  tokens = np.array(sequences)

  def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))

  new, teacher = (log_softmax(z)[rows, tokens] for z in (theta, phi))
  probability = np.exp(new.sum(1))
  with jax.enable_x64(True):
    signals = signals_of(new, new, teacher, np.ones_like(tokens, bool))
    if gamma:
      (call,) = PolicyGradient(gamma).calls(signals)
      advantages = np.asarray(call.advantages_bs)
    else:
      advantages = teacher - new  # what the op takes where it is told none

    def expected_surrogate(theta):
      log_p = jax.nn.log_softmax(theta)[rows, tokens]
      return -(probability[:, None] * advantages * log_p).sum()

    def sequence_kl(theta):
      log_p = jax.nn.log_softmax(theta)[rows, tokens].sum(1)
      return (jnp.exp(log_p) * (log_p - teacher.sum(1))).sum()

    def token_kls(theta):
      log_p, log_q = jax.nn.log_softmax(theta), log_softmax(phi)
      reach = np.zeros(len(prefixes))
      for s, p in zip(sequences, probability):
        for t in range(T):
          reach[index[s[:t]]] += p
      return (reach * (jnp.exp(log_p) * (log_p - log_q)).sum(1)).sum()

    got = jax.grad(expected_surrogate)(jnp.asarray(theta))
    wanted = jax.grad(sequence_kl if gamma else token_kls)(jnp.asarray(theta))
  np.testing.assert_allclose(got, wanted, atol=1e-12)
