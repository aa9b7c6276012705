"""What an update reads: the rollout, and what the data set gives beside the prompts that were answered.

rollout           what the student wrote                       every row
answers           what the data set says in its place          rows that are drawn (GKD, arXiv 2306.13649)
teacher_prompts   what the teacher sees in the prompt's place  every row (self-distillation, arXiv 2605.30251)
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.data import pad_right
from opd_jax.rollout import Rollout

_STREAM = 1  # tells these draws from others that start from (seed, step)


class Prompts(NamedTuple):
  """tokens_bp: int32 [B, P], left-padded; mask_bp: bool [B, P], true on prompt tokens."""

  tokens_bp: jax.Array
  mask_bp: jax.Array


class Answers(NamedTuple):
  """The data set's answers in the form of completions.

  Attributes:
    from_data_b: bool [B], the rows that they take; what the others hold here means nothing.
    tokens_bs: int32 [B, S].
    mask_bs: bool [B, S], true from the first token through end-of-sequence, inclusive.
    truncated_b: bool [B], true where the horizon came before end-of-sequence.
  """

  from_data_b: jax.Array
  tokens_bs: jax.Array
  mask_bs: jax.Array
  truncated_b: jax.Array


class Batch(NamedTuple):
  """Attributes:
  rollout: what was written.
  answers: None where no row comes from the data set.
  teacher_prompts: of as many rows; None where the teacher sees the student's.
  """

  rollout: Rollout
  answers: Answers | None = None
  teacher_prompts: Prompts | None = None

  def mixed(self) -> Rollout:
    """The rollout with the data set's answers in the rows that they take, their log-probs when written 0."""
    written, answers = self.rollout, self.answers
    if answers is None:
      return written
    row_b1 = answers.from_data_b[:, None]
    completions_bs = jnp.where(row_b1, answers.tokens_bs, written.completions_bs)
    return dataclasses.replace(
      written,
      tokens_bs=jnp.concatenate([written.prompts_bp, completions_bs], axis=1),
      completion_mask_bs=jnp.where(row_b1, answers.mask_bs, written.completion_mask_bs),
      truncated_b=jnp.where(answers.from_data_b, answers.truncated_b, written.truncated_b),
      behaviour_logprob_bs=jnp.where(row_b1, 0.0, written.behaviour_logprob_bs),
    )


def draw_rows(share: float, seed: int, step: int, rows: int) -> np.ndarray:
  """bool [rows]: which rows of a step come from the data set, each with probability `share`. A pure function: a row's
  draw depends on (seed, step, row) alone."""
  # Raw bits, not Generator.random: numpy promises the bit streams for ever, the floats made of them it does not.
  bits = np.random.Philox(np.random.SeedSequence([seed, step, _STREAM])).random_raw(rows)
  return (bits >> np.uint64(11)) * 2.0**-53 < share


def lay_out_answers(
  token_lists: Sequence[Sequence[int]], from_data_b: np.ndarray, bucket: int, horizon: int
) -> Answers:
  """Answers of different lengths as one block, on the host: rows not drawn are empty, answers end at the horizon.

  [7 8 9 0]      7 8 9 _ _      mask  1 1 1 0 0     truncated     bucket 5, horizon 3
  [5 0]      ->  5 0 _ _ _            1 1 0 0 0
  """
  kept = [ids[:horizon] if drawn else () for ids, drawn in zip(token_lists, from_data_b, strict=True)]
  truncated_b = from_data_b & (np.array([len(ids) for ids in token_lists]) > horizon)
  return Answers(from_data_b, *pad_right(kept, bucket), truncated_b)
