"""The arguments of the op: what is refused, with the fix named; what the answer holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.divergence import Scores, divergence, scores, testing

BAD = [
  ({"kind": "kl"}, "reverse_kl"),
  ({"kind": "jsd", "beta": 0.0}, "forward_kl"),
  ({"kind": "jsd", "beta": 1.0}, "reverse_kl"),
  ({"kind": "reverse_kl", "temperature": 0.0}, "temperature"),
  ({"kind": "sampled", "sampled_ids": None}, "sampled_ids"),
  ({"kind": "reverse_kl", "advantages": np.ones(4, np.float32)}, "weights"),
  ({"kind": "reverse_kl", "vocab_size": 31}, "vocab_size"),
  ({"kind": "reverse_kl", "weights": np.ones(3, np.float32)}, "weights"),
  ({"kind": "reverse_kl", "teacher_hidden": np.ones((5, 24), np.float32)}, "teacher_hidden"),
  ({"kind": "reverse_kl", "student_head": np.ones((30, 5), np.float32)}, "student_head"),
  ({"kind": "reverse_kl", "implementation": "fast"}, "token_chunk"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 4, "repair": "tail", "implementation": "pallas_tpu"}, "auto"),
  ({"kind": "reverse_kl", "interpret": True}, "pallas_tpu"),
  ({"kind": "reverse_kl", "top_k": 4}, "support"),
  ({"kind": "reverse_kl", "support": "both", "top_k": 4, "repair": "tail"}, "union"),
  ({"kind": "jsd", "support": "teacher", "top_k": 4, "repair": "tail"}, "forward_kl"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 31, "repair": "tail"}, "top_k"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 4}, "collapses"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 1, "repair": "renormalize"}, "zero gradient"),
  ({"kind": "forward_kl", "support": "teacher", "top_k": 4, "repair": "score_tail"}, "reverse_kl"),
  ({"kind": "reverse_kl", "support": "teacher", "top_k": 4, "repair": "truncate"}, "collapses"),
  ({"kind": "reverse_kl", "with_sampled": True}, "go with a support"),
]


@pytest.mark.parametrize(("changed", "named"), BAD)
def test_bad_arguments_name_the_fix(changed, named):
  arguments = testing.random_inputs(0, tokens=4, vocab=30) | changed
  with pytest.raises(ValueError, match=named):
    divergence(**arguments)


def test_only_loss_has_a_gradient_and_only_for_the_student():
  arrays = testing.random_inputs(1, tokens=5, vocab=20)

  def gradients(output):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "weights")

    def call(*values):
      return output(divergence(**(arrays | dict(zip(names, values))), kind="reverse_kl"))

    return [float(jnp.abs(g).max()) for g in jax.grad(call, range(5))(*(arrays[name] for name in names))]

  student_hidden, student_head, *fixed = gradients(lambda answer: answer.loss)
  assert student_hidden > 0 and student_head > 0 and fixed == [0, 0, 0]
  assert gradients(lambda answer: answer.per_token.sum() + answer.student_entropy.sum()) == [0] * 5


def test_scores_are_the_diagnostics_of_the_divergence():
  arrays = testing.random_inputs(2, tokens=5, vocab=20)
  wanted, _, _ = testing.answer64(arrays, kind="reverse_kl", temperature=0.8, vocab_size=20)
  arrays.pop("weights")
  got = scores(**arrays, temperature=0.8, vocab_size=20)
  assert type(got) is Scores
  for field in dataclasses.fields(Scores):
    value = getattr(got, field.name)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, getattr(wanted, field.name), rtol=1e-5, atol=1e-5)


def test_sampled_ids_are_optional():
  arrays = testing.random_inputs(3, tokens=5, vocab=20)
  arrays.pop("sampled_ids")
  answer = divergence(**arrays, kind="forward_kl")
  assert answer.student_logprob is None and answer.overlap is None
  assert answer.loss.dtype == answer.per_token.dtype == jnp.float32
  np.testing.assert_allclose(answer.loss, (arrays["weights"] * answer.per_token).sum(), rtol=1e-5)


@pytest.mark.parametrize(
  "arguments",
  [{}, {"implementation": "vocab_chunk"}, {"implementation": "reference"}]
  + [{"implementation": kernel, "interpret": True} for kernel in ("pallas_tpu", "pallas_gpu")],
)
def test_no_tokens(arguments):
  arrays = testing.random_inputs(4, tokens=0, vocab=20, widths=(16, 32))
  got, d_hidden, d_head = testing.answer(arrays, kind="reverse_kl", vocab_size=20, **arguments)
  assert got.loss == 0 and d_hidden.shape == (0, 16) and (d_head == 0).all()
  assert got.per_token.shape == got.student_entropy.shape == got.teacher_logprob.shape == (0,)
