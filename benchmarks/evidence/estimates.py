"""Mean and 95 % interval of a figure over seeds, by Student's t."""

import dataclasses
import math
import statistics
from collections.abc import Iterable

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Estimate:
  """`mean` ± `half`, the half-width of the 95 % interval; NaN where fewer than two values were given."""

  mean: float
  half: float
  count: int

  @property
  def low(self) -> float:
    return self.mean - self.half

  @property
  def high(self) -> float:
    return self.mean + self.half

  def __format__(self, spec: str) -> str:
    """`spec` is of both numbers; a percent sign comes once."""
    if not self.count:
      return "-"
    if math.isnan(self.half):
      return format(self.mean, spec)
    mean, half = format(self.mean, spec), format(self.half, spec.lstrip("+"))
    return f"{mean.removesuffix('%')} ± {half}"


def estimate(values: Iterable[float]) -> Estimate:
  """Of one value a seed. No value at all gives NaN, shown as `-`."""
  values = list(values)
  if not values:
    return Estimate(math.nan, math.nan, 0)
  if len(values) == 1:
    return Estimate(values[0], math.nan, 1)
  half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
  return Estimate(statistics.fmean(values), float(half), len(values))


def difference(left: Iterable[float], right: Iterable[float]) -> Estimate:
  """Of left minus right, paired by seed."""
  return estimate(a - b for a, b in zip(left, right, strict=True))
