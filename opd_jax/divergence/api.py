"""The operation: a divergence of two language-model heads from hidden states.

Here the arguments are checked; `gradient_rule` runs them. The weights are an input (a mask over a count, say) because
the gradient of the weighted sum is computed in the forward pass; do not wrap the op in remat, which would run it twice.
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax.divergence import reference
from opd_jax.divergence.gradient_rule import Plan, fused
from opd_jax.divergence.problem import KINDS, REPAIRS, SUPPORTS, Divergence, Inputs, Problem, Scores

KERNELS = ("pallas_tpu", "pallas_gpu")
IMPLEMENTATIONS = ("auto", "reference", "token_chunk", "vocab_chunk", *KERNELS)


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
  support: str | None = None,
  top_k: int | None = None,
  repair: str | None = None,
  with_sampled: bool = False,
  teacher_temperature: float | None = None,
  student_softcap: float | None = None,
  teacher_softcap: float | None = None,
  implementation: str = "auto",
  mesh: jax.sharding.Mesh | None = None,
  interpret: bool = False,
) -> Divergence:
  """Weighted sum over tokens of a divergence between student p and teacher q, never holding a [T, V] array.

  Args:
    student_hidden: [T, Ds] final hidden states (after the last norm), float32 or bf16. T may be 0.
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
    sampled_ids: [T] int ids in [0, vocab_size); needed by `sampled`, `score_tail`, `head_tail` and `with_sampled`,
      optional otherwise (for the log-probs).
    advantages: [T] A of `sampled`; None is -(log p(a) - log q(a)). No gradient.
    support: restricts `reverse_kl` or `forward_kl` to the `top_k` entries that the `teacher`, the `student` or either
      (`union`) ranks highest; the choice gets no gradient.
    top_k: entries of the support, of each model for `union`.
    repair: what makes the truncated sum a sound loss (S the support, P and Q the masses on it):
      `renormalize` both softmaxes on S alone (arXiv 2603.25562); `tail` one more bucket for everything else;
      `generalized` sum over S of p log(p/q) - p + q (forward: q log(q/p) - q + p);
      `score_tail` (reverse only) sum over S of p (log(p/q) - 1), plus sg(log p(a)/q(a)) log p(a) where the sampled
      token a fell outside S: its expected gradient is that of the full `reverse_kl`;
      `head_tail` (reverse only) sum over S of p log(p/q), plus r sg(log p(a)/q(a)) where a fell outside S, with
      r = p(a)/sg(p(a)) (arXiv 2603.25562, variants V4 and V5, on policy): its expected gradient is off by that of P,
      so that it moves mass out of S;
      `truncate` (forward only) sum over S of q log(q/p), as entropy-aware OPD adds it (arXiv 2603.07079).
    with_sampled: the sampled token joins the support, where it is not in it already.
    teacher_temperature: of the teacher alone; None is `temperature`.
    student_softcap: logits become softcap * tanh(logits / softcap) before the temperature.
    teacher_softcap: the same of the teacher.
    implementation: `auto` pallas_tpu on a TPU where it has the problem, else token_chunk; `reference` dense;
      `token_chunk` XLA, 4 products; `vocab_chunk` XLA, least memory; `pallas_tpu`, `pallas_gpu` kernels for
      everything but a support.
    mesh: shards the op: the vocabulary over its axis `tensor`, the tokens over all others.
    interpret: run a Pallas kernel by its interpreter, on any machine.

  Returns:
    `Divergence`; only `loss` carries a gradient, to `student_hidden` and `student_head`.

  Raises:
    ValueError: an argument is out of range or the shapes do not belong together; the message names the fix.
  """
  arrays = (student_hidden, student_head, teacher_hidden, teacher_head, weights, sampled_ids, advantages)
  inputs = Inputs(*jax.tree.map(jnp.asarray, arrays))
  problem = Problem(
    kind=kind,
    vocab_size=_checked_vocab_size(inputs, vocab_size),
    beta=beta,
    student_temperature=temperature,
    teacher_temperature=temperature if teacher_temperature is None else teacher_temperature,
    student_softcap=student_softcap,
    teacher_softcap=teacher_softcap,
    support=support,
    top_k=top_k,
    repair=repair,
    with_sampled=with_sampled,
  )
  _check_objective(problem, inputs)
  _check_support(problem, inputs)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation={implementation!r}: choose from {', '.join(IMPLEMENTATIONS)}")
  if implementation in KERNELS and support is not None:
    raise ValueError(f"implementation={implementation!r} has no local supports: use 'auto' or 'token_chunk'")
  if interpret and implementation not in KERNELS:
    raise ValueError(f"interpret=True is for implementation= one of {', '.join(KERNELS)}, not {implementation!r}")
  # Without a token there is nothing to cut: one of weight 0 takes its place, and is taken off again.
  tokens = inputs.weights.shape[0]
  inputs = inputs if tokens else _with_one_token(inputs)
  if implementation == "reference":
    answer = reference.divergence(problem, inputs)
  else:
    answer = fused(Plan(implementation, mesh, interpret), problem, *vars(inputs).values())
  return answer if tokens else jax.tree.map(lambda array: array[:0] if array.ndim else array, answer)


def scores(
  student_hidden: jax.Array,
  student_head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  *,
  sampled_ids: jax.Array | None = None,
  temperature: float = 1.0,
  vocab_size: int | None = None,
  teacher_temperature: float | None = None,
  student_softcap: float | None = None,
  teacher_softcap: float | None = None,
  mesh: jax.sharding.Mesh | None = None,
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
    teacher_temperature: of the teacher alone; None is `temperature`.
    student_softcap: as in `divergence`.
    teacher_softcap: as in `divergence`.
    mesh: as in `divergence`.

  Returns:
    `Scores`, without gradient.

  Raises:
    ValueError: as `divergence`.
  """
  arrays = jax.lax.stop_gradient((student_hidden, student_head, teacher_hidden, teacher_head))
  answer = divergence(
    *arrays,
    jnp.zeros(student_hidden.shape[:1], jnp.float32),
    kind="reverse_kl",
    temperature=temperature,
    vocab_size=vocab_size,
    sampled_ids=sampled_ids,
    teacher_temperature=teacher_temperature,
    student_softcap=student_softcap,
    teacher_softcap=teacher_softcap,
    mesh=mesh,
  )
  return Scores(**{field.name: getattr(answer, field.name) for field in dataclasses.fields(Scores)})


def _with_one_token(inputs: Inputs) -> Inputs:
  """Inputs of no token, with one: hidden states, weight and id 0."""
  heads = {name: getattr(inputs, name) for name in ("student_head", "teacher_head")}
  padded = jax.tree.map(lambda array: jnp.pad(array, [(0, 1)] + [(0, 0)] * (array.ndim - 1)), inputs)
  return dataclasses.replace(padded, **heads)


def _check_objective(problem: Problem, inputs: Inputs):
  kind, beta = problem.kind, problem.beta
  if kind not in KINDS:
    raise ValueError(f"kind={kind!r}: choose from {', '.join(KINDS)}")
  if kind == "jsd" and not 0 < beta < 1:
    limit = "forward_kl" if beta <= 0 else "reverse_kl"
    raise ValueError(
      f"jsd needs 0 < beta < 1, got {beta}: at that end the divergence itself is 0; "
      f"use kind={limit!r}, which libraries mean by beta={0 if beta <= 0 else 1}"
    )
  for name in ("student_temperature", "teacher_temperature", "student_softcap", "teacher_softcap"):
    value = getattr(problem, name)
    if value is not None and not value > 0:
      raise ValueError(f"{name.replace('student_temperature', 'temperature')}={value} must be above 0")
  if kind == "sampled" and inputs.ids is None:
    raise ValueError("kind='sampled' needs sampled_ids, the generated token at each position")
  if inputs.advantages is not None and kind != "sampled":
    raise ValueError(f"advantages belong to kind='sampled', not {kind!r}: scale `weights` instead")


def _check_support(problem: Problem, inputs: Inputs):
  support, top_k, repair = problem.support, problem.top_k, problem.repair
  if support is None:
    if top_k is not None or repair is not None or problem.with_sampled:
      raise ValueError(f"top_k, repair and with_sampled go with a support: give support= one of {', '.join(SUPPORTS)}")
    return
  if support not in SUPPORTS:
    raise ValueError(f"support={support!r}: choose from {', '.join(SUPPORTS)}")
  if problem.kind not in ("reverse_kl", "forward_kl"):
    raise ValueError(f"a support goes with kind='reverse_kl' or 'forward_kl', not {problem.kind!r}")
  if top_k is None or not 0 < top_k <= problem.vocab_size:
    raise ValueError(f"top_k={top_k} must be in 1..{problem.vocab_size}, the vocabulary")
  if repair not in REPAIRS:
    raise ValueError(
      f"repair={repair!r}: choose from {', '.join(REPAIRS)}; the reverse KL's sum truncated to the support is not "
      "offered bare, because it is no divergence: it goes below 0 and training on it collapses (verl issue 5041)"
    )
  if repair == "renormalize" and top_k == 1 and support != "union" and not problem.with_sampled:
    raise ValueError("repair='renormalize' with top_k=1 is 0 with zero gradient everywhere: use top_k >= 2 or 'tail'")
  if repair in ("score_tail", "head_tail") and problem.kind != "reverse_kl":
    raise ValueError(f"repair={repair!r} samples from the student, so it has a meaning for kind='reverse_kl' only")
  if repair == "truncate" and problem.kind != "forward_kl":
    raise ValueError(
      "repair='truncate' is for kind='forward_kl': the reverse KL's truncated sum goes below 0 and training on it "
      "collapses (verl issue 5041); use 'renormalize', 'tail', 'generalized' or 'score_tail'"
    )
  if (repair in ("score_tail", "head_tail") or problem.with_sampled) and inputs.ids is None:
    what = "with_sampled=True" if problem.with_sampled else f"repair={repair!r}"
    raise ValueError(f"{what} needs sampled_ids, the generated token at each position")


def _checked_vocab_size(inputs: Inputs, vocab_size: int | None) -> int:
  """The vocabulary size, once every shape was found to fit."""
  for name, hidden, head in (
    ("student", inputs.student_hidden, inputs.student_head),
    ("teacher", inputs.teacher_hidden, inputs.teacher_head),
  ):
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
      raise ValueError(
        f"{name}_hidden must be [T, D] and {name}_head [V, D] of the same D, got {hidden.shape} and {head.shape}"
      )
  tokens = inputs.student_hidden.shape[0]
  if inputs.teacher_hidden.shape[0] != tokens:
    raise ValueError(f"student_hidden has {tokens} tokens, teacher_hidden {inputs.teacher_hidden.shape[0]}")
  for name, array in (("weights", inputs.weights), ("sampled_ids", inputs.ids), ("advantages", inputs.advantages)):
    if array is not None and array.shape != (tokens,):
      raise ValueError(f"{name} must be [{tokens}], one a token, got {array.shape}")
  rows = min(inputs.student_head.shape[0], inputs.teacher_head.shape[0])
  if vocab_size is None:
    return rows
  if not 0 < vocab_size <= rows:
    raise ValueError(f"vocab_size={vocab_size} must be in 1..{rows}, the smaller head's rows")
  return vocab_size
