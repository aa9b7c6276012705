"""A run on a terminal: three lines that stay in their place and never wrap.

    step 40/100  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  0:02:07, 0:03:12 left
    loss 0.0213 ▇▅▄▃▂▂▁▁  H 32/64  5.1k tok/s  acc 62.5%  gap 0.012
    rollout 41%  update 52%  eval 5%  other 2%

A line takes those fields that it has room for, the first ones first, whole or not at all.
"""

import dataclasses
import datetime
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_TREND = 8  # blocks
_KEPT = 512  # losses; neighbours become their mean beyond
_LEAST_BAR = 8  # columns
_GAP = "  "


@dataclasses.dataclass(frozen=True)
class Moment:
  """What is known after a step.

  Attributes:
    step: the step; 0 before the first.
    fields: what the second line holds after the loss, such as "H 32/64", the most important first.
    loss: as text; "" before the first step.
    split: part -> share of the last steps' seconds.
    left: seconds to the end; None where nobody knows yet.
  """

  step: int
  fields: tuple[str, ...] = ()
  loss: str = ""
  split: Mapping[str, float] = dataclasses.field(default_factory=dict)
  left: float | None = None


class LiveView:
  """What `rich.live.Live` draws, at a pace of its own: the `moment` and the `losses` that stand there when it does."""

  def __init__(self, steps: int, start: int, clock: Callable[[], float]):
    self.moment, self.losses = Moment(start), Losses()
    self._steps, self._clock, self._began = steps, clock, clock()

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
    moment, width = self.moment, options.max_width - 1  # in the last column some terminals begin the next line
    yield self._first_line(moment, width, options.ascii_only)
    blocks = "" if options.ascii_only else trend(self.losses.values(), _TREND)
    loss = f"loss {moment.loss}" if moment.loss else ""
    fields = [f"{loss} {blocks}" if blocks and len(loss) + len(blocks) < width // 2 else loss, *moment.fields]
    yield _styled(fit(fields, width))
    yield _styled(fit([f"{name} {share:.0%}" for name, share in moment.split.items() if share >= 0.005], width))

  def _first_line(self, moment: Moment, width: int, ascii_only: bool) -> Text:
    gone = spell(self._clock() - self._began)
    times = gone if moment.left is None else f"{gone}, {spell(moment.left)} left"
    shown = fit([f"step {moment.step}/{self._steps}", times], width)
    room = width - sum(map(len, shown)) - 2 * len(_GAP)
    if len(shown) < 2 or room < _LEAST_BAR:
      return _styled(shown)
    done = room * moment.step // self._steps
    full, empty = ("#", ".") if ascii_only else ("━", "━")
    bar = Text.assemble((full * done, "cyan"), (empty * (room - done), "bright_black"))
    return Text(_GAP, no_wrap=True, overflow="crop").join([_styled(shown[:1]), bar, Text(times, style="dim")])


def fit(fields: Sequence[str], width: int) -> list[str]:
  """Those fields that fit into so many columns with two between them, taken in their order; empty ones never."""
  taken, used = [], -len(_GAP)
  for field in filter(None, fields):
    if used + len(_GAP) + len(field) <= width:
      taken.append(field)
      used += len(_GAP) + len(field)
  return taken


def trend(values: Sequence[float], blocks: int) -> str:
  """A curve as blocks: the means of so many equal parts of it, from its smallest to its largest. "" for one value."""
  blocks = min(blocks, len(values))
  if blocks < 2:
    return ""
  edges = [len(values) * part // blocks for part in range(blocks + 1)]
  means = [statistics.fmean(values[begin:end]) for begin, end in itertools.pairwise(edges)]
  low, high = min(means), max(means)
  heights = (0.0 if high == low else (mean - low) / (high - low) for mean in means)
  return "".join(_BLOCKS[round(height * (len(_BLOCKS) - 1))] for height in heights)


class Losses:
  """The losses of a run for its trend, in bounded memory."""

  def __init__(self):
    self._means: list[float] = []
    self._waiting: list[float] = []
    self._each = 1  # losses that a mean is of

  def add(self, loss: float | None) -> None:
    """One that is missing or not finite is left out."""
    if loss is None or not math.isfinite(loss):
      return
    self._waiting.append(loss)
    if len(self._waiting) == self._each:
      self._means.append(statistics.fmean(self._waiting))
      self._waiting = []
    if len(self._means) == _KEPT:
      self._means = [statistics.fmean(pair) for pair in zip(self._means[::2], self._means[1::2])]
      self._each *= 2

  def values(self) -> tuple[float, ...]:
    return tuple(self._means)


def spell(seconds: float) -> str:
  """Hours, minutes and seconds: 0:03:12."""
  return str(datetime.timedelta(seconds=round(seconds)))


def _styled(fields: Sequence[str]) -> Text:
  """Fields beside one another, the name of each paler than its value."""
  parts = []
  for field in fields:
    name, space, value = field.partition(" ")
    parts.append(Text.assemble((name, "dim"), space, value) if name.isalpha() else Text(field))
  return Text(_GAP, no_wrap=True, overflow="crop").join(parts)
