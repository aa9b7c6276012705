"""The bucket ladder: which static widths a horizon may compile to.

A horizon is a traced limit inside a program; the bucket is the program's static width (cache width minus prompt, and
training length). One program is compiled per bucket used, and every horizon up to the bucket runs in it.

    ladder    16        32                  64                                      128
    H = 40    ................................########|#############|               bucket 64: 24 columns of padding
"""

import bisect
from collections.abc import Sequence


def powers_of_two(maximum: int, smallest: int = 16) -> tuple[int, ...]:
  """`smallest`, twice that, ... up to `maximum`, which is always the last rung."""
  rungs = []
  width = smallest
  while width < maximum:
    rungs.append(width)
    width *= 2
  return (*rungs, maximum)


def bucket_for(H: int, ladder: Sequence[int]) -> int:
  """The smallest bucket of `ladder` (ascending) that holds `H` tokens.

  Raises ValueError for a horizon below 1 or above the ladder's last rung.
  """
  if H < 1:
    raise ValueError(f"horizon {H} is below 1")
  at = bisect.bisect_left(ladder, H)
  if at == len(ladder):
    raise ValueError(f"horizon {H} is above the ladder's last bucket {ladder[-1]}")
  return ladder[at]
