"""Random problems, the float64 answer and the tolerance, for the tests and the benchmarks of this folder."""

import jax
import numpy as np

from opd_jax.divergence.api import divergence

OUTPUTS = ("per_token", "student_entropy", "teacher_entropy", "student_logsumexp", "teacher_logsumexp")
OPTIONAL_OUTPUTS = ("student_logprob", "teacher_logprob", "student_mass", "teacher_mass", "overlap")


def random_inputs(
  seed: int, tokens: int, vocab: int, widths=(16, 24), padding=(0, 3), scale: float = 3.0, kl: float | None = None
) -> dict[str, np.ndarray]:
  """Arrays of a call, by their argument names (without `advantages`), float32.

  Args:
    seed: of numpy's generator.
    tokens: T; about one weight in five is 0, some are negative.
    vocab: entries that are no padding.
    widths: Ds, Dt.
    padding: rows of garbage after the vocabulary, of each head.
    scale: standard deviation of the logits.
    kl: if given, the teacher is the student (width Ds) with its hidden states disturbed so that KL is about this.
  """
  rng = np.random.default_rng(seed)

  def model(width, extra):
    head = rng.normal(size=(vocab + extra, width)) * scale / np.sqrt(width)
    head[vocab:] = 1e3  # would drown everything if it were read
    return rng.normal(size=(tokens, width)), head

  student, teacher = model(widths[0], padding[0]), model(widths[1], padding[1])
  if kl is not None:
    disturbed = student[0] + rng.normal(size=student[0].shape) * np.sqrt(2 * kl) / scale
    teacher = (disturbed, student[1])
  weights = rng.normal(size=tokens) * (rng.random(tokens) > 0.2)
  arrays = {
    "student_hidden": student[0],
    "student_head": student[1],
    "teacher_hidden": teacher[0],
    "teacher_head": teacher[1],
    "weights": weights,
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  return arrays | {"sampled_ids": rng.integers(0, vocab, tokens).astype(np.int32)}


def answer(arrays: dict[str, np.ndarray], **arguments):
  """(Divergence, d_hidden, d_head) as numpy, from one compiled call of the op."""
  arrays = dict(arrays)
  student = arrays.pop("student_hidden"), arrays.pop("student_head")

  def with_result(student, arrays):
    result = divergence(*student, **arrays, **arguments)
    return result.loss, result

  gradients, result = jax.jit(jax.grad(with_result, has_aux=True))(student, arrays)
  return jax.tree.map(np.asarray, (result, *gradients))


def answer64(arrays: dict[str, np.ndarray], **arguments):
  """The same by float64 dense autodiff."""
  arguments["implementation"] = "reference"
  with jax.enable_x64(True):
    wide = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    return answer(wide, **arguments)


def tolerance(expected: np.ndarray, largest_logit: float) -> float:
  """1e-5 of the expected array's largest entry, or 1e-6 (1 + max|logit|), whichever is larger."""
  return max(1e-5 * float(np.abs(expected).max(initial=0)), 1e-6 * (1 + largest_logit))


def largest_logit(arrays: dict[str, np.ndarray], vocab: int) -> float:
  """max |logit| of both models, at temperature 1."""
  pairs = (("student_hidden", "student_head"), ("teacher_hidden", "teacher_head"))
  return max(float(np.abs(arrays[hidden].astype(np.float64) @ arrays[head][:vocab].T).max()) for hidden, head in pairs)


def assert_agree(got, expected, largest: float, factor: float = 1.0):
  """Values, diagnostics and both gradients within the tolerance; nothing NaN or infinite.

  Args:
    got: from `answer`.
    expected: from `answer64`.
    largest: max |logit| of the call, at its temperatures.
    factor: widens the tolerance: of `loss`, a sum, by its terms; of 16-bit inputs.
  """
  names = OUTPUTS + tuple(name for name in OPTIONAL_OUTPUTS if getattr(expected[0], name) is not None)
  pairs = [(name, getattr(got[0], name), getattr(expected[0], name)) for name in names]
  pairs += [("d_hidden", got[1], expected[1]), ("d_head", got[2], expected[2])]
  for name, value, wanted in pairs:
    assert np.isfinite(value).all(), name
    error = np.abs(np.asarray(value, np.float64) - wanted).max(initial=0)
    assert error <= factor * tolerance(wanted, largest), f"{name}: error {error:.2e} at size {np.abs(wanted).max():.2e}"
