"""The bucket ladder: which static widths a horizon may compile to.

A horizon is a traced limit inside a program; the bucket is the program's static width (cache width minus prompt, and
training length). One program is compiled per bucket used, and every horizon up to the bucket runs in it.

    ladder    16        32                  64                                      128
    H = 40    ................................########|#############|               bucket 64: 24 columns of padding

Few rungs pad much, many compile much. Three rules need nothing but the longest horizon; the ladder that is best for a
schedule is found in `search`.
"""

import bisect
import math
import re
from collections.abc import Callable, Sequence

SMALLEST = 16  # the first rung of the rules that multiply


def powers_of_two(maximum: int, smallest: int = SMALLEST) -> tuple[int, ...]:
  """`smallest`, twice that, ... up to `maximum`, which is always the last rung."""
  return geometric(maximum, 2, smallest)


def linear(maximum: int, step: int) -> tuple[int, ...]:
  """`step`, twice, three times that, ... up to `maximum`, which is always the last rung. At least 1 token a step."""
  if step < 1:
    raise ValueError(f"the step is {step}: it must be at least 1 token")
  return (*range(step, maximum, step), maximum)


def geometric(maximum: int, ratio: float, smallest: int = SMALLEST) -> tuple[int, ...]:
  """Each rung `ratio` > 1 times the one before, rounded up, from `smallest` to `maximum`, always the last rung.

  No horizon from `smallest` on is then padded to more than `ratio` times its length (and the rounding).
  """
  if not 1 < ratio < math.inf:
    raise ValueError(f"the ratio is {ratio:g}: it must be a number above 1")
  rungs = []
  width = smallest
  while width < maximum:
    rungs.append(width)
    width = max(width + 1, math.ceil(round(min(width * ratio, maximum), 9)))  # 1.1 * 10 is 11.000000000000002 in binary
  return (*rungs, maximum)


_RULES: dict[str, tuple[Callable[..., tuple[int, ...]], Callable[[str], float] | None, str]] = {
  "powers_of_two": (powers_of_two, None, ""),
  "linear": (linear, int, "512"),
  "geometric": (geometric, float, "1.5"),
}


def ladder_rule(text: str) -> Callable[[int], tuple[int, ...]]:
  """The rule that `text` names: maximum -> ladder. `powers_of_two`, `linear(512)`, `geometric(1.5)`.

  Raises ValueError, with what is wrong in one line, for an unknown rule or an argument that it cannot take.
  """
  match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
  name, argument = (match[1], match[2]) if match else (text, None)
  if name not in _RULES:
    raise ValueError("it must be auto, powers_of_two, linear(512), geometric(1.5) or rungs such as (64, 128)")
  rule, kind, example = _RULES[name]
  if kind is None:
    if argument:
      raise ValueError(f"{name} takes no argument")
    return rule
  try:
    value = kind(argument)
  except (TypeError, ValueError):
    wanted = "a whole number of tokens" if kind is int else "a number"
    raise ValueError(f"{name} takes {wanted}, such as {name}({example})") from None
  rule(SMALLEST, value)  # refuses what no ladder can be made of, now and not in the middle of a run
  return lambda maximum: rule(maximum, value)


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
