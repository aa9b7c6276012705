"""Student and teacher read what the student wrote: hidden states from which each completion token is predicted.

The one-token shift lives here and nowhere else. The state at a position predicts the *next* token, so the states that
predict the S completion tokens are those of the last prompt token and of all completion tokens but the last:

    column        0  1  2  3  4 | 5  6  7  8          P = 5, S = 4
    token         .  .  a  b  c | x  y  z  w
    hidden states taken      └────┴──┴──┘             columns P-1 .. P+S-2, predicting x y z w
"""

import jax
import jax.numpy as jnp

from opd_jax.models import Model, forward


def score(
  model: Model,
  prompts_bp: jax.Array,
  prompt_mask_bp: jax.Array,
  completions_bs: jax.Array,
  completion_mask_bs: jax.Array,
  *,
  remat: bool = False,
) -> jax.Array:
  """Hidden states that predict each completion token, after the final norm.

  A model is scored with its own prompts: a teacher that sees another context passes that, and nothing downstream
  changes.

  Args:
    model: student or teacher.
    prompts_bp: int32 [B, P], left-padded; prompt_mask_bp: bool [B, P].
    completions_bs: int32 [B, S]; completion_mask_bs: bool [B, S], true on a prefix of each row.
    remat: recompute each layer in the backward pass.

  Returns:
    hidden_bsd [B, S, D] in the parameters' dtype. Column t predicts completions_bs[:, t]; columns off the completion
    mask are finite and mean nothing.
  """
  P, S = prompts_bp.shape[1], completions_bs.shape[1]
  tokens_bt = jnp.concatenate([prompts_bp, completions_bs], axis=1)
  valid_bt = jnp.concatenate([prompt_mask_bp, completion_mask_bs], axis=1)
  positions_bt = jnp.maximum(jnp.cumsum(valid_bt, axis=1) - 1, 0)
  hidden_btd, _ = forward(model, tokens_bt, positions_bt, valid_bt, remat=remat)
  return hidden_btd[:, P - 1 : P + S - 1]
