"""The charts of a report, drawn with matplotlib and returned as SVG that stands inline in a page.

A colour is a run, in every chart. The colours are not fixed here: matplotlib draws with stand-in colours, and those
are replaced by the page's CSS variables, so that one drawing serves a light screen, a dark one and paper:

    matplotlib ─► stroke: #0a0b00 ─► stroke: var(--run-0) ─► page.py says what --run-0 is

matplotlib is imported when a chart is drawn: it is slow to load and most users of `telemetry` draw nothing.
"""

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opd_jax.telemetry.record import Result, RunRecord

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

NOISY_STEPS = 30  # from here on a loss curve gets a running mean
COLOURS = 8  # --run-0 ... --run-7; further runs start again with another line
_STAND_INS = {"ink": "#0a0a00", "muted": "#0a0a01", "grid": "#0a0a02", "surface": "#0a0a03", "alarm": "#0a0a04"}
_STAND_INS |= {f"run-{index}": f"#0a0b0{index}" for index in range(COLOURS)}
_LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_SIZE = (4.5, 2.9)  # inches; a phone shows it at about its natural size, so that 9 pt stays legible
_POINTS = 400  # of a curve; more cannot be told apart and only make the page heavy
_COLUMNS = 48  # of a heat map
_SHADES = 8  # of its scale
_OPACITIES = 24  # that are told apart


def accuracy(runs: Sequence[RunRecord], label: str, *, seconds: bool) -> str | None:
  """Accuracy of one evaluation set against generated tokens, or against seconds of training; None: nothing to draw."""
  drawn = [(index, run, result) for index, run in enumerate(runs) for result in run.results() if result.label == label]
  if not any(result.student for _, _, result in drawn):
    return None

  def draw(figure: "Figure") -> None:
    axes = figure.subplots()
    for index, run, result in drawn:
      spent = run.training_seconds if seconds else run.generated_tokens
      _scores(axes, index, result, spent)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("seconds of training" if seconds else "generated tokens")
    axes.margins(x=0.03)
    _short_numbers(axes.xaxis)

  what = "seconds of training" if seconds else "generated tokens"
  return _svg(f"accuracy-{'seconds' if seconds else 'tokens'}-{label}", f"{label}: accuracy against {what}", draw)


def loss(runs: Sequence[RunRecord]) -> str | None:
  """The loss of every step, and its running mean where there are many."""
  curves = [(index, *run.column("loss")) for index, run in enumerate(runs)]
  if not any(steps for _, steps, _ in curves):
    return None

  def draw(figure: "Figure") -> None:
    axes = figure.subplots()
    for index, steps, values in curves:
      noisy = len(values) >= NOISY_STEPS
      axes.plot(*_thinned(steps, values), alpha=0.3 if noisy else 1, linewidth=1 if noisy else 1.8, **_run(index))
      if noisy:
        axes.plot(*_thinned(steps, running_mean(values, len(values) // 20)), linewidth=1.8, **_run(index))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _whole_steps(axes)

  return _svg("loss", "loss against step", draw)


def horizon(runs: Sequence[RunRecord]) -> str | None:
  """The horizon (line), the bucket that it ran in (pale), and where programs were compiled (triangles)."""
  curves = [(index, *run.column("horizon"), *run.column("bucket")) for index, run in enumerate(runs)]
  if not any(curve[1] for curve in curves):
    return None

  def draw(figure: "Figure") -> None:
    axes = figure.subplots()
    for index, steps, horizons, bucket_steps, buckets in curves:
      axes.step(bucket_steps, buckets, where="mid", alpha=0.35, linewidth=3.5, **(_run(index) | {"linestyle": "-"}))
      axes.step(steps, horizons, where="mid", linewidth=1.6, **_run(index))
      for name, colour in (("compiles", f"run-{index % COLOURS}"), ("unplanned_compiles", "alarm")):
        # At the foot of the axes, in units of their height: a mark belongs to a step, not to a horizon.
        at = list(runs[index].compiles(name))
        style = {"linestyle": "", "marker": "^" if name == "compiles" else "x", "color": _STAND_INS[colour]}
        height = 0.04 + 0.06 * (index % 4) + (0.06 if name != "compiles" else 0)
        axes.plot(at, [height] * len(at), markersize=5, transform=axes.get_xaxis_transform(), **style)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("tokens")
    _whole_steps(axes)

  return _svg("horizon", "horizon and bucket against step, with the steps where programs were compiled", draw)


def lengths(runs: Sequence[RunRecord]) -> str | None:
  """Mean completion length above, the share of truncated completions below."""
  panels = [("completion_length", "mean tokens"), ("truncated", "truncated")]
  panels = [(name, title) for name, title in panels if any(run.column(name)[0] for run in runs)]
  if not panels:
    return None

  def draw(figure: "Figure") -> None:
    ratios = [2, 1] if len(panels) == 2 else [1]
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axes, (name, title) in zip(grid[:, 0], panels):
      for index, run in enumerate(runs):
        axes.plot(*_thinned(*run.column(name)), linewidth=1.6, **_run(index))
      axes.set_ylabel(title)
      axes.set_ylim(bottom=0)
      if name == "truncated":
        axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    grid[-1, 0].set_xlabel("step")
    _whole_steps(grid[-1, 0])

  return _svg("lengths", "completion length and share of truncated completions against step", draw)


def positions(runs: Sequence[RunRecord]) -> str | None:
  """The loss along the response over training, a panel a run: how opaque a cell is says how large, on one scale."""
  maps = [(index, *_map(*run.by_position("loss_by_position"))) for index, run in enumerate(runs)]
  maps = [(index, edges, columns) for index, edges, columns in maps if columns]
  values = sorted(value for _, _, columns in maps for column in columns for value in column if value is not None)
  if not values or values[-1] <= 0:
    return None
  top = max(values[int(0.98 * (len(values) - 1))], 0.01 * values[-1])  # a few large cells must not pale all others

  def draw(figure: "Figure") -> None:
    grid = figure.subplots(len(maps), 2, squeeze=False, gridspec_kw={"width_ratios": [24, 1]})
    for (index, edges, columns), (axes, scale) in zip(maps, grid):
      parts = len(columns[0])
      cells = [
        (left, part, right - left, value / top)
        for left, right, column in zip(edges, edges[1:], columns)
        for part, value in enumerate(column)
        if value is not None
      ]
      _shade(axes, index, cells)
      _whole_steps(axes)
      axes.set_xlim(edges[0], edges[-1])
      axes.set_ylim(parts, 0)  # the response begins at the top
      axes.set_yticks([0, parts / 2, parts], ["start", "middle", "end"])
      _shade(scale, index, [(0, part, 1, (part + 0.5) / _SHADES) for part in range(_SHADES)])
      scale.set_xlim(0, 1)
      scale.set_ylim(0, _SHADES)
      scale.set_xticks([])
      scale.yaxis.tick_right()
      scale.set_yticks([0, _SHADES / 2, _SHADES], [f"{share * top:.2g}" for share in (0, 0.5, 1)])
      for panel in (axes, scale):
        panel.grid(visible=False)
    grid[-1, 0].set_xlabel("step")

  height = _SIZE[1] if len(maps) == 1 else 0.5 + 1.1 * len(maps)
  return _svg("positions", "loss along the response, over training", draw, size=(_SIZE[0], height))


def time_split(runs: Sequence[RunRecord]) -> str | None:
  """Where the seconds went: one bar a part and run."""
  splits = [run.seconds_split() for run in runs]
  parts = list(dict.fromkeys(part for split in splits for part in split))
  if not parts:
    return None

  def draw(figure: "Figure") -> None:
    axes = figure.subplots()
    thickness = 0.8 / len(runs)
    for index, split in enumerate(splits):
      whole = sum(split.values())
      seconds = [split.get(part, 0.0) for part in parts]
      places = [row + (index - (len(runs) - 1) / 2) * thickness for row in range(len(parts))]
      bars = axes.barh(places, seconds, height=0.86 * thickness, color=_STAND_INS[f"run-{index % COLOURS}"])
      if len(runs) <= 3:
        texts = [f"{value:.3g} s, {value / whole:.0%}" if whole else "" for value in seconds]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds")
    axes.margins(x=0.28 if len(runs) <= 3 else 0.03)
    _short_numbers(axes.xaxis)

  return _svg("time", "seconds by part of the run", draw, size=(_SIZE[0], max(_SIZE[1], 0.11 * len(runs) * len(parts))))


def _scores(axes: "Axes", index: int, result: Result, spent: Callable[[int], float]) -> None:
  at = [spent(score.step) for score in result.student]
  values = [score.accuracy for score in result.student]
  marker = "o" if len(at) <= 40 else ""
  axes.plot(at, values, marker=marker, markersize=3.5, linewidth=1.8, **_run(index))
  if all(score.stderr is not None for score in result.student):
    low, high = ([s.accuracy + sign * s.stderr for s in result.student] for sign in (-1, 1))
    axes.fill_between(at, low, high, color=_run(index)["color"], alpha=0.15, linewidth=0)
  if result.teacher:
    # In no run's colour: several runs mostly share their teacher.
    axes.axhline(result.teacher.accuracy, color=_STAND_INS["muted"], linewidth=1, linestyle=(0, (2, 2)), zorder=1)


def _map(
  steps: Sequence[int], columns: Sequence[Sequence[float | None]]
) -> tuple[list[float], list[list[float | None]]]:
  """A long heat map as at most `_COLUMNS` means of neighbouring columns, each of the numbers that there are; and where
  these begin, with where the last one ends."""
  stride = math.ceil(len(steps) / _COLUMNS) if steps else 1
  means = []
  for start in range(0, len(steps), stride):
    known = [[value for value in part if value is not None] for part in zip(*columns[start : start + stride])]
    means.append([_mean(values) if values else None for values in known])
  return [step - 0.5 for step in [*steps[::stride], *(last + 1 for last in steps[-1:])]], means


def _shade(axes: "Axes", index: int, cells: Sequence[tuple[float, float, float, float]]) -> None:
  """Cells of height 1 in a run's colour: (left, bottom, width, share of full colour, cut to [0, 1])."""
  from matplotlib.patches import PathPatch
  from matplotlib.path import Path

  shades: dict[int, list[tuple[float, float]]] = {}
  for left, bottom, width, share in cells:
    # Opacity follows the root: small values are told apart as well.
    corners = shades.setdefault(round(_OPACITIES * math.sqrt(min(1.0, max(0.0, share)))), [])
    right, top = left + width, bottom + 1
    corners += [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
  codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
  colour = _STAND_INS[f"run-{index % COLOURS}"]
  for shade, corners in sorted(shades.items()):
    if shade:  # one path a shade, not one a cell: a tenth of the page's bytes
      path = Path(corners, codes * (len(corners) // len(codes)))
      axes.add_patch(PathPatch(path, facecolor=colour, alpha=shade / _OPACITIES, linewidth=0))


def _run(index: int) -> dict:
  return {
    "color": _STAND_INS[f"run-{index % COLOURS}"],
    "linestyle": _LINES[index // COLOURS % len(_LINES)],
    "solid_capstyle": "round",
  }


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
  """A long curve as at most `_POINTS` means of neighbouring points."""
  stride = math.ceil(len(steps) / _POINTS) if steps else 1
  chunks = [slice(start, start + stride) for start in range(0, len(steps), stride)]
  return [_mean(steps[chunk]) for chunk in chunks], [_mean(values[chunk]) for chunk in chunks]


def running_mean(values: Sequence[float], reach: int) -> list[float]:
  """The mean of `reach` values on either side and the value itself, fewer near the ends but as many on either side.

  A window that is cut on one side only would bend a falling curve's start downwards.
  """
  reaches = [min(reach, at, len(values) - 1 - at) for at in range(len(values))]
  return [_mean(values[at - near : at + near + 1]) for at, near in enumerate(reaches)]


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


def _whole_steps(axes: "Axes") -> None:
  from matplotlib.ticker import MaxNLocator

  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.margins(x=0.03)


def _short_numbers(axis) -> None:
  from matplotlib.ticker import EngFormatter, MaxNLocator

  axis.set_major_locator(MaxNLocator(5))
  axis.set_major_formatter(EngFormatter(sep=""))


def _svg(name: str, description: str, draw: Callable[["Figure"], None], size: tuple[float, float] = _SIZE) -> str:
  import matplotlib
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure

  colours = {
    "text.color": "ink",
    "axes.labelcolor": "muted",
    "axes.edgecolor": "grid",
    "axes.facecolor": "surface",
    "xtick.color": "grid",
    "ytick.color": "grid",
    "xtick.labelcolor": "muted",
    "ytick.labelcolor": "muted",
    "grid.color": "grid",
  }
  style = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the page's font
    "svg.hashsalt": name,  # the same ids at every drawing
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
  } | {key: _STAND_INS[colour] for key, colour in colours.items()}
  # A figure of its own, outside pyplot: no global state, no backend chosen for the process that trains.
  with matplotlib.rc_context(style):
    figure = Figure(figsize=size)
    FigureCanvasSVG(figure)
    draw(figure)
    figure.patch.set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
  return _inline(file.getvalue(), name, description)


def _inline(document: str, name: str, description: str) -> str:
  """An SVG document as an element of a page: no prologue, no namespaces, ids of its own, colours as variables."""
  svg = document[document.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
  prefix = re.sub(r"\W+", "-", name)
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
  for variable, colour in _STAND_INS.items():
    svg = svg.replace(colour, f"var(--{variable})")
  # Width and height are the page's to say; the viewBox keeps the proportions.
  svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
  return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
