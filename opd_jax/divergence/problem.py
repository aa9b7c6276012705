"""What is asked of the divergence op, and what it answers.

`Problem` holds everything that is fixed when a program is compiled, `Inputs` the arrays, `Divergence` and `Scores` the
answers. Every implementation in this folder is a function of (Problem, Inputs) and nothing else.
"""

import dataclasses
from functools import partial

import jax

KINDS = ("reverse_kl", "forward_kl", "jsd", "sampled")

# Minus infinity that can be subtracted from itself: padded vocabulary and the start of every running maximum.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Problem:
  """The static half of a call: hashable, so that one compiled program belongs to one problem."""

  kind: str
  vocab_size: int
  beta: float = 0.5
  student_temperature: float = 1.0
  teacher_temperature: float = 1.0

  @property
  def needs_mixture(self) -> bool:
    """Whether the loss holds log(beta q + (1-beta) p), which needs both normalisers before its first term."""
    return self.kind == "jsd"

  @property
  def needs_teacher_logits(self) -> bool:
    """Whether the gradient at one vocabulary entry depends on the teacher's logit there."""
    return self.kind != "sampled"


@partial(
  jax.tree_util.register_dataclass,
  data_fields=["student_hidden", "student_head", "teacher_hidden", "teacher_head", "weights", "ids", "advantages"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Inputs:
  """The arrays of a call. T tokens, widths Ds and Dt, heads of Vs and Vt rows (at least `vocab_size` each)."""

  student_hidden: jax.Array  # [T, Ds]
  student_head: jax.Array  # [Vs, Ds]
  teacher_hidden: jax.Array  # [T, Dt]
  teacher_head: jax.Array  # [Vt, Dt]
  weights: jax.Array  # [T] float32
  ids: jax.Array | None = None  # [T] int32, the sampled tokens
  advantages: jax.Array | None = None  # [T] float32


@partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "loss",
    "per_token",
    "student_entropy",
    "teacher_entropy",
    "student_logsumexp",
    "teacher_logsumexp",
    "student_logprob",
    "teacher_logprob",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Divergence:
  """The answer of `divergence`. Float32 (float64 for float64 inputs); only `loss` carries a gradient.

  Attributes:
    loss: [] sum over tokens of weight * per_token; differentiable in the student's hidden states and head.
    per_token: [T] nats, unweighted, finite also where the weight is 0.
    student_entropy: [T] nats, of the student's softmax at its temperature.
    teacher_entropy: [T] nats, of the teacher's softmax at its temperature.
    student_logsumexp: [T] log-normaliser of the student's logits divided by its temperature.
    teacher_logsumexp: [T] the same of the teacher.
    student_logprob: [T] log p(sampled id), or None without `sampled_ids`.
    teacher_logprob: [T] log q(sampled id), or None without `sampled_ids`.
  """

  loss: jax.Array
  per_token: jax.Array
  student_entropy: jax.Array
  teacher_entropy: jax.Array
  student_logsumexp: jax.Array
  teacher_logsumexp: jax.Array
  student_logprob: jax.Array | None = None
  teacher_logprob: jax.Array | None = None


@partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "student_entropy",
    "teacher_entropy",
    "student_logsumexp",
    "teacher_logsumexp",
    "student_logprob",
    "teacher_logprob",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Scores:
  """The answer of `scores`: per-token diagnostics of both models, all [T], in nats, without gradient.

  The fields mean what they mean in `Divergence`.
  """

  student_entropy: jax.Array
  teacher_entropy: jax.Array
  student_logsumexp: jax.Array
  teacher_logsumexp: jax.Array
  student_logprob: jax.Array | None = None
  teacher_logprob: jax.Array | None = None
