"""Marks of k answers to each of n questions: on average, at best, by vote; and how sure each of them is.

    one question, four answers    right  1  0  1  0        avg@4   2/4
                                  says   7  3  7  5        pass@2  1 - C(2, 2) / C(4, 2) = 5/6
                                                           maj@4   1: seven has most votes, and is right

The answers to one question are not independent, so every mark is first one number a question. Its standard error is
that of their mean, and its 95 % interval the normal one, 1.96 standard errors to either side, cut to [0, 1]: too narrow
where the questions are few or nearly all of them come out alike.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

_NORMAL_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Mark:
  """A mean over questions in [0, 1]; `stderr` and the bounds of its 95 % interval are None for a single question."""

  value: float
  stderr: float | None
  low: float | None
  high: float | None

  @classmethod
  def of(cls, values_n: np.ndarray) -> "Mark":
    """From one number a question."""
    value, n = float(values_n.mean()), len(values_n)
    if n == 1:
      return cls(value, None, None, None)
    stderr = float(values_n.std(ddof=1) / math.sqrt(n))
    return cls(value, stderr, max(0.0, value - _NORMAL_95 * stderr), min(1.0, value + _NORMAL_95 * stderr))


def pass_at(correct_nk: np.ndarray, tries: int) -> np.ndarray:
  """[N] the probability that a question is answered at least once in so many tries, estimated without bias.

  1 - C(K - c, tries) / C(K, tries) with c right answers (arXiv 2107.03374), as a product without factorials.

  Args:
    correct_nk: [N, K], 1 where an answer is right, 0 elsewhere.
    tries: from 1 to K.
  """
  k = correct_nk.shape[1]
  wrong_n1 = k - correct_nk.sum(axis=1, keepdims=True)
  i_k = np.arange(1, k + 1)
  factors_nk = np.where(i_k > wrong_n1, np.maximum(0.0, 1 - tries / i_k), 1.0)
  return 1 - factors_nk.prod(axis=1)


def majority(correct_nk: np.ndarray, answers_nk: Sequence[Sequence[str]]) -> np.ndarray:
  """[N] whether the answer that most of a question's responses give is right.

  Args:
    correct_nk: [N, K], 1 where a response is right, 0 elsewhere.
    answers_nk: what each response comes down to (`graders.extract`); "" has no vote.

  Returns:
    The share of right responses among those that give the answer; of several with as many votes, the mean of their
    shares; 0 where no response gives an answer.
  """
  values = []
  for correct_k, answers_k in zip(correct_nk, answers_nk, strict=True):
    votes = Counter(filter(None, answers_k))
    most = max(votes.values(), default=0)
    shares = [
      np.mean([right for right, answer in zip(correct_k, answers_k, strict=True) if answer == chosen])
      for chosen, count in votes.items()
      if count == most
    ]
    values.append(np.mean(shares) if shares else 0.0)
  return np.array(values)


def describe(correct_nk: np.ndarray, answers_nk: Sequence[Sequence[str]]) -> dict[str, Any]:
  """The marks of a row of eval.jsonl.

  Args: as those of `majority`, N >= 1.

  Returns:
    `accuracy` (avg@k) with `stderr`, `low` and `high`; `pass_at` and `pass_at_stderr`, by the number of tries as text:
    1, 2, 4, ... and k; `maj` (maj@k) and `maj_stderr`.
  """
  k = correct_nk.shape[1]
  accuracy, maj = Mark.of(correct_nk.mean(axis=1)), Mark.of(majority(correct_nk, answers_nk))
  tries = sorted({2**i for i in range(k.bit_length())} | {k})
  passes = {str(count): Mark.of(pass_at(correct_nk, count)) for count in tries}
  return {
    "accuracy": accuracy.value,
    "stderr": accuracy.stderr,
    "low": accuracy.low,
    "high": accuracy.high,
    "pass_at": {count: mark.value for count, mark in passes.items()},
    "pass_at_stderr": {count: mark.stderr for count, mark in passes.items()},
    "maj": maj.value,
    "maj_stderr": maj.stderr,
  }
