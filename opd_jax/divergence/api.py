"""The operation: a divergence of two language-model heads from hidden states.

Here the arguments are checked, the implementation is chosen and the gradient rule is attached. The gradient of the
weighted sum is computed in the forward pass, where the logits are at hand; the backward pass only scales it by the
cotangent of `loss`. So the weights are an input (a mask over a count, say), and the op must not be wrapped in remat.
"""

from functools import partial

import jax
import jax.numpy as jnp

from opd_jax.divergence import reference, token_chunk
from opd_jax.divergence.problem import KINDS, Divergence, Inputs, Problem, Scores

IMPLEMENTATIONS = ("reference", "token_chunk")


def divergence(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  weights: jax.Array,
  *,
  kind: str,
  beta: float = 0.5,
  temperature: float = 1.0,
  vocab_size: int | None = None,
  sampled_ids: jax.Array | None = None,
  advantages: jax.Array | None = None,
  implementation: str = "auto",
) -> Divergence:
  """Weighted sum over tokens of a divergence between student p and teacher q, never holding a [T, V] array.

  Args:
    student_hidden: [T, Ds] final hidden states (after the last norm), float32 or bf16.
    student_head: [Vs, Ds] output embedding.
    teacher_hidden: [T, Dt]; no gradient.
    teacher_head: [Vt, Dt]; no gradient. The widths and the padding of the two vocabularies may differ.
    weights: [T] weight of each token in `loss`; may be negative or zero; no gradient.
    kind: `reverse_kl` KL(p||q); `forward_kl` KL(q||p); `jsd` beta KL(q||M) + (1-beta) KL(p||M) with
      M = beta q + (1-beta) p (GKD, arXiv 2306.13649); `sampled` log p(a) - log q(a) of the sampled token, with the
      policy gradient of -A log p(a) (its expectation over a ~ p at the default A is the gradient of `reverse_kl`).
    beta: `jsd` only, strictly between 0 and 1.
    temperature: divides the logits of both models; no T^2 factor.
    vocab_size: entries past it are padding; None is the smaller head's rows.
    sampled_ids: [T] int ids in [0, vocab_size); needed by `sampled`, optional otherwise (for the log-probs).
    advantages: [T] A of `sampled`; None is -(log p(a) - log q(a)). No gradient.
    implementation: `auto`, `reference` (dense) or `token_chunk`.

  Returns:
    `Divergence`; only `loss` carries a gradient, to `student_hidden` and `student_head`.

  Raises:
    ValueError: an argument is out of range or the shapes do not belong together; the message names the fix.
  """
  vocab_size = _checked_shapes(
    student_hidden, student_head, teacher_hidden, teacher_head, sampled_ids, vocab_size, weights, advantages
  )
  _check_objective(kind, beta, temperature, sampled_ids, advantages)
  if implementation not in ("auto", *IMPLEMENTATIONS):
    raise ValueError(f"implementation={implementation!r}: choose from auto, {', '.join(IMPLEMENTATIONS)}")
  problem = Problem(
    kind=kind,
    vocab_size=vocab_size,
    beta=float(beta),
    student_temperature=float(temperature),
    teacher_temperature=float(temperature),
  )
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head, weights, sampled_ids, advantages)
  arrays = jax.tree.map(jnp.asarray, arrays)
  if implementation == "reference":
    return reference.divergence(problem, Inputs(*arrays))
  return _fused(problem, *arrays)


def scores(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  *,
  sampled_ids: jax.Array | None = None,
  temperature: float = 1.0,
  vocab_size: int | None = None,
) -> Scores:
  """Log-probs of given ids, entropies and log-normalisers of both models; forward only, never a [T, V] array.

  Args:
    student_hidden: [T, Ds].
    student_head: [Vs, Ds].
    teacher_hidden: [T, Dt].
    teacher_head: [Vt, Dt].
    sampled_ids: [T] int ids in [0, vocab_size), or None: then the two log-prob fields are None.
    temperature: divides the logits of both models.
    vocab_size: entries past it are padding; None is the smaller head's rows.

  Returns:
    `Scores`, without gradient.

  Raises:
    ValueError: as `divergence`.
  """
  answer = divergence(
    *jax.lax.stop_gradient((student_hidden, student_head, teacher_hidden, teacher_head)),
    jnp.zeros(student_hidden.shape[:1], jnp.float32),
    kind="reverse_kl",
    temperature=temperature,
    vocab_size=vocab_size,
    sampled_ids=sampled_ids,
  )
  return Scores(
    answer.student_entropy,
    answer.teacher_entropy,
    answer.student_logsumexp,
    answer.teacher_logsumexp,
    answer.student_logprob,
    answer.teacher_logprob,
  )


def _check_objective(kind, beta, temperature, sampled_ids, advantages):
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r}: choose from {', '.join(KINDS)}")
  if kind == "jsd" and not 0 < beta < 1:
    limit = "forward_kl" if beta <= 0 else "reverse_kl"
    raise ValueError(
      f"jsd needs 0 < beta < 1, got {beta}: at that end the divergence itself is 0; "
      f"use kind={limit!r}, which libraries mean by beta={0 if beta <= 0 else 1}"
    )
  if not temperature > 0:
    raise ValueError(f"temperature={temperature} must be above 0")
  if kind == "sampled" and sampled_ids is None:
    raise ValueError("kind='sampled' needs sampled_ids, the generated token at each position")
  if advantages is not None and kind != "sampled":
    raise ValueError(f"advantages belong to kind='sampled', not {kind!r}: scale `weights` instead")


def _checked_shapes(
  student_hidden, student_head, teacher_hidden, teacher_head, sampled_ids, vocab_size, weights, advantages
) -> int:
  """The vocabulary size, once every shape was found to fit."""
  for name, hidden, head in (
    ("student", student_hidden, student_head),
    ("teacher", teacher_hidden, teacher_head),
  ):
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
      raise ValueError(
        f"{name}_hidden must be [T, D] and {name}_head [V, D] of the same D, got {hidden.shape} and {head.shape}"
      )
  tokens = student_hidden.shape[0]
  if teacher_hidden.shape[0] != tokens:
    raise ValueError(f"student_hidden has {tokens} tokens, teacher_hidden {teacher_hidden.shape[0]}")
  for name, array in (("weights", weights), ("sampled_ids", sampled_ids), ("advantages", advantages)):
    if array is not None and jnp.shape(array) != (tokens,):
      raise ValueError(f"{name} must be [{tokens}], one a token, got {jnp.shape(array)}")
  rows = min(student_head.shape[0], teacher_head.shape[0])
  if vocab_size is None:
    return rows
  if not 0 < vocab_size <= rows:
    raise ValueError(f"vocab_size={vocab_size} must be in 1..{rows}, the smaller head's rows")
  return vocab_size


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(problem, student_hidden, student_head, *fixed):
  """The op with its own gradient rule. `fixed`: teacher_hidden, teacher_head, weights, ids, advantages."""
  inputs = Inputs(student_hidden, student_head, *fixed)
  return _answer(problem, inputs, token_chunk.rows_and_gradients(problem, inputs, (False, False))[0])


def _fused_forward(problem, student_hidden, student_head, *fixed):
  wanted = (student_hidden.perturbed, student_head.perturbed)
  student_hidden, student_head, *fixed = jax.tree.map(
    lambda primal: primal.value, (student_hidden, student_head, *fixed), is_leaf=lambda x: hasattr(x, "perturbed")
  )
  inputs = Inputs(student_hidden, student_head, *fixed)
  rows, d_hidden, d_head = token_chunk.rows_and_gradients(problem, inputs, wanted)
  # Empty arrays carry the students' types to the backward pass: cotangents must have the type of what they belong to.
  types = jnp.zeros((0,), student_hidden.dtype), jnp.zeros((0,), student_head.dtype)
  return _answer(problem, inputs, rows), (d_hidden, d_head, types)


def _fused_backward(problem, residuals, cotangent):
  del problem
  *gradients, types = residuals
  scale = cotangent.loss
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return (None,) * 7
  scaled = (None if g is None else (g * scale).astype(t.dtype) for g, t in zip(gradients, types))
  return *scaled, None, None, None, None, None


_fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)


def _answer(problem: Problem, inputs: Inputs, rows) -> Divergence:
  """The public answer from the per-token results."""
  student_logprob = teacher_logprob = None
  if inputs.ids is not None:
    student_logprob, teacher_logprob = token_chunk.chosen_logprobs(
      problem, inputs, rows.student_logsumexp, rows.teacher_logsumexp
    )
  return Divergence(
    loss=jnp.sum(inputs.weights * rows.per_token),
    per_token=rows.per_token,
    student_entropy=rows.student_entropy,
    teacher_entropy=rows.teacher_entropy,
    student_logsumexp=rows.student_logsumexp,
    teacher_logsumexp=rows.teacher_logsumexp,
    student_logprob=student_logprob,
    teacher_logprob=teacher_logprob,
  )
