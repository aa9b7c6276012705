"""Compiling ahead: the schedule is known, so the next bucket's programs are compiled while this one trains.

    step        0 ........ 10 ........ 20 ........ 30
    bucket      16         32          64          128
    compiling   [   32  ][     64    ][     128   ]           in the background: each is done before it is needed

Where the horizon grows faster than the compiler compiles, waiting is moved to before the first step, where it is seen
for what it is, instead of a stall after each growth.
"""

from collections.abc import Sequence

_MARGIN = 1.5  # a wider bucket compiles longer than the first, and a busy host compiles slower


def too_late(growths: Sequence[int], seconds_a_step: float, seconds_a_compile: float) -> int:
  """How many of the coming buckets must be compiled before the first step, so that the others are ready in time.

  Args:
    growths: for each bucket to come, in order: how many steps from now it is first needed.
    seconds_a_step: of the present bucket, at the least: steps do not get shorter.
    seconds_a_compile: of one bucket's programs.
  """
  compiling = _MARGIN * seconds_a_compile
  for first in range(len(growths)):
    rest = enumerate(growths[first:], start=1)
    if all(nth * compiling <= steps * seconds_a_step for nth, steps in rest):
      return first
  return len(growths)
