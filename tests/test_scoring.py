"""The one-token shift, on its own: hidden states that predict exactly the completion's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax import models
from opd_jax.data import pad_left
from opd_jax.scoring import score

PROMPTS = [[5, 9, 11], [3, 4, 5, 6, 7, 8, 2], [17]]
COMPLETIONS = [[1, 2, 3, 4], [9, 8], [0, 0, 7]]


@pytest.fixture(scope="module")
def model():
  config = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
  }
  return models.initialize(models.Architecture.from_config(config, "test"), jax.random.key(3), "float32")


def pad_right(rows, width):
  tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  return tokens, mask


@pytest.mark.parametrize("prompt_width, bucket", [(7, 4), (11, 9)])
def test_column_t_predicts_completion_token_t(model, prompt_width, bucket):
  hidden = score(model, *pad_left(PROMPTS, prompt_width), *pad_right(COMPLETIONS, bucket))
  assert hidden.shape == (3, bucket, 32) and np.isfinite(hidden).all()
  ours = jnp.einsum("bsd,vd->bsv", hidden, model.head_vd)
  for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS)):
    # Independent of masks and padding: the row alone; logits at position i predict token i + 1.
    alone = models.logits(model, [prompt + completion])[0]
    for t in range(len(completion)):
      np.testing.assert_allclose(ours[row, t], alone[len(prompt) + t - 1], atol=1e-5)


def test_a_prompt_of_ones_own_changes_only_the_context(model):
  """What a teacher with another context needs: same completion columns, states of its own prompt."""
  completion = pad_right(COMPLETIONS, 5)
  other = [[20, 21], [22], [23, 24, 25]]
  hidden = score(model, *pad_left(other, 3), *completion)
  for row, (prompt, tokens) in enumerate(zip(other, COMPLETIONS)):
    alone = models.logits(model, [prompt + tokens])[0, len(prompt) - 1 : -1]
    np.testing.assert_allclose(hidden[row, : len(tokens)] @ model.head_vd.T, alone, atol=1e-5)


def test_tokens_after_a_position_do_not_change_it(model):
  prompts = pad_left(PROMPTS, 7)
  changed = [[1, 2, 30, 31], [9, 33], [0, 34, 35]]
  a, b = (score(model, *prompts, *pad_right(rows, 4)) for rows in (COMPLETIONS, changed))
  np.testing.assert_array_equal(a[0, :3], b[0, :3])  # columns 0..2 see completion tokens 0..1 only
  np.testing.assert_array_equal(a[1, :2], b[1, :2])
  assert not np.allclose(a[0, 3], b[0, 3])


def test_remat_changes_no_value(model):
  arguments = (model, *pad_left(PROMPTS, 7), *pad_right(COMPLETIONS, 4))
  np.testing.assert_allclose(score(*arguments, remat=True), score(*arguments), atol=1e-6)
