"""The batch that a rollout hands on: what every later part of a step reads, and nothing else.

                 P columns (prompts end at the same column)        S columns (the bucket)
    tokens       [ .  .  .  what  is  2  +  2  ?                 |  4  .  <eos>  _  _  _  _  _ ]
    prompt_mask  [ 0  0  0  1     1   1  1  1  1                 ]
    completion_mask                                              [  1  1    1    0  0  0  0  0 ]

Padding is known by these masks alone, never by a token id: the pad id may equal end-of-sequence.
"""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
  """Completions of B prompts. P: prompt columns; S: the bucket.

  Attributes:
    tokens_bs: int32 [B, P + S], left-padded prompts followed by completions.
    prompt_mask_bp: bool [B, P], true on prompt tokens.
    completion_mask_bs: bool [B, S], true from the first generated token through end-of-sequence, inclusive.
    truncated_b: bool [B], true where the horizon came before end-of-sequence.
    behaviour_logprob_bs: float32 [B, S], log-probability of each generated token in nats under the softmax of the
      temperature-scaled logits, before top-k and top-p (temperature 1 when greedy); 0 off the completion.
    behaviour_entropy_bs: float32 [B, S], entropy of that softmax in nats, 0 off the completion; None where it was not
      asked for.
  """

  tokens_bs: jax.Array
  prompt_mask_bp: jax.Array
  completion_mask_bs: jax.Array
  truncated_b: jax.Array
  behaviour_logprob_bs: jax.Array
  behaviour_entropy_bs: jax.Array | None = None

  @property
  def prompts_bp(self) -> jax.Array:
    return self.tokens_bs[:, : self.prompt_mask_bp.shape[1]]

  @property
  def completions_bs(self) -> jax.Array:
    return self.tokens_bs[:, self.prompt_mask_bp.shape[1] :]
