"""The third failure of arXiv 2603.25562, section 2.3: a teacher that ends its answers with another token punishes the
student's correct end until it is gone; left out of the loss of the sampled estimator, it stays.

A mask by the written token does not save it from a whole distribution: wherever the student happens to write a third
token at the end of an answer, all of the teacher's choice is taught there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from opd_jax import models
from opd_jax.objectives import Matching, Objective, PolicyGradient, Reading, Signals, TokenWeights
from opd_jax.rollout import Sampling, sample_completions
from opd_jax.scoring import score

V, P, S, END, OTHER_END = 16, 3, 8, 1, 2


def answers(prompts):
  """What is right: the last token counted up four times, then the end."""
  counted = 3 + (prompts[:, -1:] - 3 + np.arange(1, 5)) % (V - 3)
  return np.concatenate([counted, np.full((len(prompts), 1), END)], axis=1)


def batch(seed, rows=32):
  return np.random.default_rng(seed).integers(3, V, (rows, P)).astype(np.int32)


@pytest.fixture(scope="module")
def student():
  """A small model that answers right and ends with END."""
  config = {
    "model_type": "qwen3",
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
  }
  model = models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(0), "float32")
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 600))

  @jax.jit
  def step(params, state, prompts, right):
    def loss(params):
      model_ = dataclasses.replace(model, params=params)
      hidden = score(model_, prompts, jnp.ones(prompts.shape, bool), right, jnp.ones(right.shape, bool))
      log_p = jax.nn.log_softmax(hidden @ model_.head_vd.T)
      return -jnp.take_along_axis(log_p, right[..., None], axis=-1).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  params, state = model.params, optimizer.init(model.params)
  for i in range(600):
    prompts = batch(i)
    params, state = step(params, state, prompts, answers(prompts))
  return dataclasses.replace(model, params=params)


def end_probability(model):
  """Mean probability of END where an answer must end."""
  prompts = batch(10_000, 64)
  right = answers(prompts)
  hidden = score(model, prompts, jnp.ones(prompts.shape, bool), right, jnp.ones(right.shape, bool))
  return float(jax.nn.softmax(hidden[:, -1] @ model.head_vd.T)[:, END].mean())


@pytest.mark.parametrize(
  "term, weights, destroyed",
  [
    (PolicyGradient(), TokenWeights(), True),
    (PolicyGradient(), TokenWeights(first_of=(END,)), False),
    (Matching("reverse_kl"), TokenWeights(), True),
  ],
  ids=["sampled", "sampled, masked", "reverse_kl"],
)
def test_fifty_steps_destroy_the_end_unless_it_is_masked(student, term, weights, destroyed):
  """The teacher is the student itself, but for the ids of the two ends, which are swapped in its head."""
  swap = np.arange(V)
  swap[[END, OTHER_END]] = OTHER_END, END
  teacher = dataclasses.replace(student, params=student.params | {"head_vd": student.head_vd[swap]})
  objective, optimizer = Objective(((1.0, term),), V), optax.adam(1e-3)
  assert end_probability(student) > 0.95

  @jax.jit
  def step(params, state, prompts, seed):
    model = dataclasses.replace(student, params=params)
    whole = jnp.ones(prompts.shape, bool)
    numbers = (jnp.int32(S), jnp.uint32(seed), jnp.uint32(0), jnp.arange(len(prompts), dtype=jnp.uint32))
    static = dict(bucket=S, sampling=Sampling(1.0), eos_ids=(END, OTHER_END), vocab_size=V)
    rollout = sample_completions(model, prompts, whole, *numbers, **static)
    tokens, mask = rollout.completions_bs, rollout.completion_mask_bs
    positions = jnp.broadcast_to(jnp.arange(S), tokens.shape)
    signals = Signals(tokens, positions, mask, weights(tokens, mask), rollout.behaviour_logprob_bs)

    def loss(params):
      model = dataclasses.replace(student, params=params)
      readings = (Reading(score(m, prompts, whole, tokens, mask), m.head_vd) for m in (model, teacher))
      return objective(*readings, signals).value

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  params, state = student.params, optimizer.init(student.params)
  for i in range(50):
    params, state = step(params, state, batch(1000 + i), np.uint32(i))
  after = end_probability(dataclasses.replace(student, params=params))
  assert after < 0.5 if destroyed else after > 0.9
