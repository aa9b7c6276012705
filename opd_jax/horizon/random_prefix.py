"""A horizon drawn anew at each step, and the weights that make its gradient that of the longest.

    rungs            16       32       64        drawn each with probability 1/3
    P(H >= t)        1        2/3      1/3
    weight           1        3/2      3         of a token up to that rung, over rows * 64

A token counts by how seldom it is reached, and the divisor is what the longest horizon could hold, never what was kept:
the expected gradient is that of the full horizon under the same divisor (arXiv 2603.06619, its random prefix cut, here
with the generation cut as well). What is saved in tokens is paid in variance.
"""

import dataclasses
from typing import Any

import numpy as np

from opd_jax.horizon.rungs import lengths_on
from opd_jax.horizon.schedules import Horizon

_STREAM = 0x4E4154  # of random bits, apart from those that order prompts


@dataclasses.dataclass(frozen=True)
class RandomPrefix(Horizon):
  """One of `rungs` (ascending, the last is `maximum`), each as likely, by the step alone: so it can be planned for."""

  rungs: tuple[int, ...]

  def __call__(self, step: int, state: Any = None) -> int:
    bits = np.random.Philox(np.random.SeedSequence([_STREAM, step])).random_raw()
    return self.rungs[int(bits) % len(self.rungs)]  # 2^64 is so many that no rung is favoured in sight

  @property
  def reached(self) -> tuple[tuple[int, float], ...]:
    """(rung, probability that a horizon is at least that) ascending."""
    count = len(self.rungs)
    return tuple((rung, (count - i) / count) for i, rung in enumerate(self.rungs))


def random_prefix(rungs: tuple[int, ...], T: int, start: int) -> Horizon:
  """Over the rungs from the first that holds `start` up to `T`. Raises ValueError where `start` is above `T`."""
  return RandomPrefix(T, lengths_on(rungs, T, start))
