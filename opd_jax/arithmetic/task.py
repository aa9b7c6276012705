"""A problem and its solution, as text: where the prompts of the quickstart come from.

    prompt       a3b1c4d3...x2:                  letter, digit; the digits are of base 5
    completion   a3=3b1=4c4=3d3=1...x2=v         letter, its digit looked up in the prompt, =, running sum modulo 5

Each unit of the chain is four tokens (a token is a character): the letter says which digit is due, the digit is copied,
the sum adds it to the sum before. With 24 letters the completion has 97 tokens, end of sequence included, so how much
of the chain a truncated rollout sees is proportional to its horizon. The answer is the whole chain: the last sum alone
would be right one time in five by chance, and a wrong chain can end on it.

A student's wrong rule is one too high after a digit 3. `uniform`: at any letter, with some probability, so the gap to
the teacher is the same at every position and a short rollout shows it. `late`: always, in the last third of the
letters alone, so a rollout that is cut before never meets what the teacher knows better.
"""

import string

import numpy as np

BASE = 5
LETTERS = string.ascii_lowercase[:24]
VARIANTS = ("uniform", "late")

_MISTAKEN_DIGIT = 3
_LATE = 2 * len(LETTERS) // 3  # first letter of the last third


def draw_digits(generator: np.random.Generator, rows: int, count: int = len(LETTERS)) -> np.ndarray:
  """int64 [rows, count], uniform in 0 .. BASE - 1."""
  return generator.integers(BASE, size=(rows, count))


def running_sums(digits_bn: np.ndarray, mistakes_bn: np.ndarray | None = None) -> np.ndarray:
  """Sums modulo BASE of each digit and all before it, [B, N]; one too high from each place in `mistakes_bn` on."""
  return np.cumsum(digits_bn if mistakes_bn is None else digits_bn + mistakes_bn, axis=1) % BASE


def draw_mistakes(
  variant: str, digits_bn: np.ndarray, probability: float, generator: np.random.Generator
) -> np.ndarray:
  """Where a student's wrong rule strikes, bool [B, N] over the digits of whole problems.

  Args:
    variant: `uniform` or `late`.
    digits_bn: [B, N], N = len(LETTERS).
    probability: of a mistake after a digit 3; in `late` it is certain, but only in the last third.
  """
  mistaken_bn = digits_bn == _MISTAKEN_DIGIT
  if variant == "late":
    return mistaken_bn & (np.arange(digits_bn.shape[1]) >= _LATE)
  return mistaken_bn & (generator.random(digits_bn.shape) < probability)


def prompt(digits_n: np.ndarray, first: int = 0) -> str:
  """`a3b1...:` of one problem whose letters begin with number `first`."""
  return "".join(f"{LETTERS[first + i]}{digit}" for i, digit in enumerate(digits_n)) + ":"


def chain(digits_n: np.ndarray, sums_n: np.ndarray, first: int = 0) -> str:
  """`a3=3b1=4...`, the completion of `prompt(digits_n, first)` that writes `sums_n`."""
  return "".join(f"{LETTERS[first + i]}{digit}={total}" for i, (digit, total) in enumerate(zip(digits_n, sums_n)))


def problems(count: int, seed: tuple[int, ...]) -> list[dict[str, str]]:
  """Rows of a prompt file, {"prompt": ..., "answer": ...}, the answer being the right chain. A pure function."""
  digits_bn = draw_digits(np.random.default_rng(seed), count)
  return [
    {"prompt": prompt(digits_n), "answer": chain(digits_n, sums_n)}
    for digits_n, sums_n in zip(digits_bn, running_sums(digits_bn))
  ]
