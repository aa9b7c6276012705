"""The specification itself, against numpy definitions, TRL's generalised JSD and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.divergence import divergence, testing

TOKENS, VOCAB, K = 5, 30, 6
KL = {"reverse_kl": "student", "forward_kl": "teacher"}


def probabilities(arrays, temperature=1.0):
  """(p, q) [T, V] in float64."""

  def softmax(model):
    logits = arrays[f"{model}_hidden"].astype(np.float64) @ arrays[f"{model}_head"][:VOCAB].T / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)

  return softmax("student"), softmax("teacher")


@pytest.mark.parametrize("implementation", ["reference", "token_chunk"])
def test_definitions(implementation):
  arrays = testing.random_inputs(1, TOKENS, VOCAB)
  p, q = probabilities(arrays, 0.8)
  m = 0.3 * q + 0.7 * p
  at = np.arange(TOKENS), arrays["sampled_ids"]
  wanted = {
    "reverse_kl": (p * np.log(p / q)).sum(1),
    "forward_kl": (q * np.log(q / p)).sum(1),
    "jsd": 0.3 * (q * np.log(q / m)).sum(1) + 0.7 * (p * np.log(p / m)).sum(1),
    "sampled": np.log(p[at] / q[at]),
  }
  for kind, per_token in wanted.items():
    got = divergence(**arrays, kind=kind, beta=0.3, temperature=0.8, vocab_size=VOCAB, implementation=implementation)
    np.testing.assert_allclose(got.per_token, per_token, rtol=2e-5, atol=1e-5, err_msg=kind)
  np.testing.assert_allclose(got.student_entropy, -(p * np.log(p)).sum(1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.teacher_logprob, np.log(q[at]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(KL))
@pytest.mark.parametrize("support", ["teacher", "student", "union"])
def test_support_definitions(kind, support):
  """Tail bucket, renormalised and generalised top-K, written out in numpy."""
  arrays = testing.random_inputs(2, TOKENS, VOCAB)
  p, q = probabilities(arrays)
  best = {"student": np.argsort(-p)[:, :K], "teacher": np.argsort(-q)[:, :K]}
  for token in range(TOKENS):
    chosen = sorted(set().union(*(best[m][token] for m in best if support in (m, "union"))))
    a, b = (p, q) if kind == "reverse_kl" else (q, p)
    a, b = a[token, chosen], b[token, chosen]
    rest_a, rest_b = 1 - a.sum(), 1 - b.sum()
    wanted = {
      "renormalize": (a / a.sum() * np.log(a / a.sum() / (b / b.sum()))).sum(),
      "tail": (a * np.log(a / b)).sum() + rest_a * np.log(rest_a / rest_b),
      "generalized": (a * np.log(a / b) - a + b).sum(),
    }
    sampled = arrays["sampled_ids"][token]
    if kind == "forward_kl":
      wanted["truncate"] = (a * np.log(a / b)).sum()
    else:
      outside = np.log(p[token, sampled] / q[token, sampled]) * (sampled not in chosen)
      wanted["head_tail"] = (a * np.log(a / b)).sum() + outside
    for repair, per_token in wanted.items():
      one = {name: array[token : token + 1] if len(array) == TOKENS else array for name, array in arrays.items()}
      arguments = {"support": support, "top_k": K, "repair": repair, "vocab_size": VOCAB}
      got = divergence(**one, kind=kind, **arguments, implementation="reference")
      np.testing.assert_allclose(got.per_token[0], per_token, rtol=2e-5, atol=1e-5, err_msg=repair)
      np.testing.assert_allclose(got.student_mass[0], p[token, chosen].sum(), rtol=1e-5)
      np.testing.assert_allclose(got.overlap[0], np.minimum(p, q)[token, chosen].sum(), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_trl_generalised_jsd(beta):
  """TRL's `generalized_jsd_loss` (GKD trainer, v1): beta 0 is forward KL, 1 is reverse KL."""
  import torch
  import torch.nn.functional as F

  arrays = testing.random_inputs(3, TOKENS, VOCAB)
  logits = [
    torch.tensor(arrays[f"{m}_hidden"], dtype=torch.float64) @ torch.tensor(arrays[f"{m}_head"][:VOCAB].T).double()
    for m in ("student", "teacher")
  ]
  student, teacher = (F.log_softmax(values, dim=-1) for values in logits)
  if beta == 0:
    wanted = F.kl_div(student, teacher, reduction="none", log_target=True)
  elif beta == 1:
    wanted = F.kl_div(teacher, student, reduction="none", log_target=True)
  else:
    share = torch.tensor(beta, dtype=torch.float64)
    mixture = torch.logsumexp(torch.stack([student + torch.log(1 - share), teacher + torch.log(share)]), dim=0)
    of_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True)
    of_student = F.kl_div(mixture, student, reduction="none", log_target=True)
    wanted = beta * of_teacher + (1 - beta) * of_student
  kind = {0.0: "forward_kl", 0.5: "jsd", 1.0: "reverse_kl"}[beta]
  for implementation in ("reference", "token_chunk"):
    got = divergence(**arrays, kind=kind, beta=0.5, vocab_size=VOCAB, implementation=implementation)
    np.testing.assert_allclose(got.per_token, wanted.sum(dim=1).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"kind": "sampled"}, {"support": "teacher", "top_k": 3, "repair": "score_tail"}])
def test_expected_gradient_over_every_token_is_reverse_kl(arguments):
  """The mean over a ~ p of the estimator's gradient, enumerated, is the gradient of the full divergence."""
  vocab = 12
  arrays = testing.random_inputs(4, 1, vocab, padding=(0, 0))
  logits = arrays["student_hidden"] @ arrays["student_head"].T
  p = np.asarray(jax.nn.softmax(logits[0].astype(np.float64)))
  repeated = {name: np.repeat(arrays[name], vocab, 0) for name in ("student_hidden", "teacher_hidden")}
  heads = {name: arrays[name] for name in ("student_head", "teacher_head")}
  everything = heads | repeated | {"weights": p.astype(np.float32), "sampled_ids": np.arange(vocab, dtype=np.int32)}
  got = testing.answer(everything, **({"kind": "reverse_kl"} | arguments))
  one = heads | {name: arrays[name] for name in repeated} | {"weights": np.ones(1, np.float32)}
  wanted = testing.answer64(one, kind="reverse_kl")
  np.testing.assert_allclose(got[1].sum(axis=0), wanted[1][0], atol=2e-5 * np.abs(wanted[1]).max())
  np.testing.assert_allclose(got[2], wanted[2], atol=2e-5 * np.abs(wanted[2]).max())


def test_expected_gradient_of_head_and_tail_is_off_by_that_of_the_mass_on_the_support():
  """The published form (arXiv 2603.25562, V4 and V5): what its gradient adds pushes mass out of the support."""
  vocab, k = 12, 3
  arrays = testing.random_inputs(6, 1, vocab, padding=(0, 0))
  logits = (arrays[f"{m}_hidden"].astype(np.float64) @ arrays[f"{m}_head"].T for m in ("student", "teacher"))
  p, q = (np.asarray(jax.nn.softmax(z[0]), np.float64) for z in logits)
  repeated = {name: np.repeat(arrays[name], vocab, 0) for name in ("student_hidden", "teacher_hidden")}
  heads = {name: arrays[name] for name in ("student_head", "teacher_head")}
  everything = heads | repeated | {"weights": p.astype(np.float32), "sampled_ids": np.arange(vocab, dtype=np.int32)}
  got = testing.answer(everything, kind="reverse_kl", support="teacher", top_k=k, repair="head_tail")
  inside = np.isin(np.arange(vocab), np.argsort(-q)[:k])
  kl = (p * np.log(p / q)).sum()
  of_kl, of_mass = p * (np.log(p / q) - kl), p * (inside - p[inside].sum())
  wanted = (of_kl + of_mass) @ arrays["student_head"].astype(np.float64)
  np.testing.assert_allclose(got[1].sum(axis=0), wanted, atol=2e-5 * np.abs(wanted).max())


def test_advantages_replace_the_default_without_changing_the_value():
  arrays = testing.random_inputs(5, TOKENS, VOCAB)
  advantages = np.linspace(-1, 2, TOKENS).astype(np.float32)
  plain, _, _ = testing.answer(arrays, kind="sampled")
  got, d_hidden, _ = testing.answer(arrays | {"advantages": advantages}, kind="sampled")
  np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-6)

  def policy_loss(hidden):
    log_p = jax.nn.log_softmax(hidden @ arrays["student_head"][:VOCAB].T)
    return -jnp.sum(arrays["weights"] * advantages * log_p[jnp.arange(TOKENS), arrays["sampled_ids"]])

  np.testing.assert_allclose(d_hidden, jax.grad(policy_loss)(arrays["student_hidden"]), atol=1e-5)
