"""What is asked of the divergence op, and what it answers.

`Problem` holds everything that is fixed when a program is compiled, `Inputs` the arrays, `Divergence` and `Scores` the
answers. Every implementation in this folder is a function of (Problem, Inputs) and nothing else.
"""

import dataclasses

import jax

KINDS = ("reverse_kl", "forward_kl", "jsd", "sampled")
SUPPORTS = ("teacher", "student", "union")
REPAIRS = ("renormalize", "tail", "generalized", "score_tail", "head_tail", "truncate")

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
  student_softcap: float | None = None
  teacher_softcap: float | None = None
  support: str | None = None
  top_k: int | None = None
  repair: str | None = None
  with_sampled: bool = False

  @property
  def is_dense(self) -> bool:
    """Whether the gradient at every vocabulary entry depends on the teacher's logit there.

    Otherwise it is (row scalar) * p, plus a value at a few entries of the row: the sampled token or the support.
    """
    return self.kind != "sampled" and self.support is None

  @property
  def needs_second_pass(self) -> bool:
    """Whether the loss holds sums that can only be formed once both normalisers are known.

    log(beta q + (1-beta) p) of `jsd`, and the mass outside a support, which 1 - (mass inside) would lose to rounding.
    """
    return (self.kind == "jsd") or self.repair == "tail"


@jax.tree_util.register_dataclass
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
  """Per-token diagnostics of both models: all [T], in nats, float32 (float64 for float64 inputs), without gradient.

  Attributes:
    student_entropy: of the student's softmax at its temperature.
    teacher_entropy: of the teacher's softmax at its temperature.
    student_logsumexp: log-normaliser of the student's logits divided by its temperature.
    teacher_logsumexp: the same of the teacher.
    student_logprob: log p(sampled id), or None without `sampled_ids`.
    teacher_logprob: log q(sampled id), or None without `sampled_ids`.
  """

  student_entropy: jax.Array
  teacher_entropy: jax.Array
  student_logsumexp: jax.Array
  teacher_logsumexp: jax.Array
  student_logprob: jax.Array | None
  teacher_logprob: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Divergence(Scores):
  """The answer of `divergence`: `Scores`, and:

  Attributes:
    loss: [] sum over tokens of weight * per_token; differentiable in the student's hidden states and head.
    per_token: [T] nats, unweighted, finite also where the weight is 0; no gradient.
    student_mass: [T] probability that the student puts on the support, or None without a support.
    teacher_mass: [T] the same of the teacher.
    overlap: [T] sum over the support of min(p, q), or None.
  """

  loss: jax.Array
  per_token: jax.Array
  student_mass: jax.Array | None = None
  teacher_mass: jax.Array | None = None
  overlap: jax.Array | None = None
