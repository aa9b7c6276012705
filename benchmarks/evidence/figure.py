"""One style for all pictures of the studies: colours by position, a mean with its interval, a file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.evidence.estimates import estimate

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLOURS = ("#4c566a", "#2a9d8f", "#e76f51", "#e9a820", "#7b6ba8", "#5b9bd5", "#b5485d", "#8a8a5c", "#333333", "#c59bd0")
ROW = 3  # panels side by side


def panels(count: int, height: float = 3.8, *, share_y: bool = False) -> "tuple[Figure, Sequence[Axes]]":
  """Axes without the frame's upper and right side, in rows of `ROW`. matplotlib is loaded here: it is slow to."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  rows, columns = math.ceil(count / ROW), min(count, ROW)
  size = (5.2 * columns, height * rows)
  figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=share_y, layout="constrained")
  for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
  for ax in axes.flat[count:]:
    ax.remove()
  return figure, axes.flat[:count]


def line(ax: "Axes", x: Sequence[float], runs: Sequence[Sequence[float]], colour: str, label: str) -> None:
  """The mean of several runs at each x, and its 95 % interval as a band."""
  points = [estimate(values) for values in zip(*runs, strict=True)]
  ax.plot(x, [point.mean for point in points], color=colour, linewidth=1.8, label=label)
  if len(runs) > 1:
    ax.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.15, linewidth=0)


def bars(ax: "Axes", labels: Sequence[str], runs: Sequence[Sequence[float]], colours: Sequence[str] = COLOURS) -> None:
  """One bar a label, the mean of its runs, with its 95 % interval. From top to bottom."""
  points = [estimate(values) for values in runs]
  places = range(len(labels), 0, -1)
  errors = [point.half if point.count > 1 else 0.0 for point in points]
  ax.barh(places, [point.mean for point in points], xerr=errors, color=colours, height=0.7, error_kw={"linewidth": 1})
  ax.set_yticks(list(places), labels)


def save(figure: "Figure", path: Path) -> None:
  import matplotlib.pyplot as plt

  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)
