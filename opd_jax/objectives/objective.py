"""What the student minimises: a divergence from the teacher at every generated token, averaged over valid tokens.

    loss = sum over rows and columns of  mask * D(student, teacher)  /  number of valid tokens of the *global* batch

The divisor is counted before the batch is cut into micro-batches, so the sum over their losses is the loss of the
whole, whatever the split, the padding or the number of devices.
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.divergence import Divergence, divergence


@dataclasses.dataclass(frozen=True)
class Objective:
  """A divergence of the two models' next-token distributions.

  Attributes:
    kind: reverse_kl = KL(student||teacher), forward_kl = KL(teacher||student), jsd, or sampled: the reverse KL of the
      sampled token as a policy gradient, gamma = 0, no whitening (arXiv 2605.31490; 2603.25562, section 2.1).
    beta: of jsd.
    temperature: divides the logits of both models.
    vocab_size: ids that both tokenizers have; rows of the heads past it are padding.
  """

  kind: str
  beta: float
  temperature: float
  vocab_size: int

  def __call__(
    self,
    student_hidden_bsd: jax.Array,
    student_head_vd: jax.Array,
    teacher_hidden_bse: jax.Array,
    teacher_head_ve: jax.Array,
    weights_bs: jax.Array,
    completions_bs: jax.Array,
  ) -> Divergence:
    """The weighted divergence over [B, S] positions; fields of the result are flat, [B * S].

    Both models' log-probabilities of the completion's tokens are among them: one row of each head a token.
    """

    # Tokens are split over data and fsdp, the vocabulary over tensor: the op does its own collectives.
    mesh = jax.sharding.get_abstract_mesh()

    def flat(x: jax.Array) -> jax.Array:
      return x.reshape(-1, *x.shape[2:])

    return divergence(
      flat(student_hidden_bsd),
      student_head_vd,
      flat(teacher_hidden_bse),
      teacher_head_ve,
      flat(weights_bs),
      kind=self.kind,
      beta=self.beta,
      temperature=self.temperature,
      vocab_size=self.vocab_size,
      sampled_ids=flat(completions_bs),
      mesh=None if mesh.empty or mesh.size == 1 else mesh,
    )


def token_weights(completion_mask_bs: jax.Array) -> jax.Array:
  """float32 [B, S] that sum to 1 over the valid tokens of the global batch (all 0 where there is none)."""
  mask_bs = completion_mask_bs.astype(jnp.float32)
  return mask_bs / jnp.maximum(mask_bs.sum(), 1.0)
