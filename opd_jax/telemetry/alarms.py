"""What should make a person look at a run: rules over its rows, each told once.

    length collapse     completions a quarter as long as before, at the same horizon or a longer one
    length explosion    nearly all rows cut by the horizon, where at most a third were
    repetition          more than half of what is written stood before in the same response, and twice the usual share
    entropy collapse    the student a tenth as unsure as at the start, and a fifth as unsure as its teacher

"Before" is the mean of the run's first ten steps since the horizon last moved; of a value smoothed over about ten.
Steps that probe the full horizon are passed over.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_FIRST = 10  # steps that say what is usual
_SMOOTH = 0.8  # of the running mean's weight that stays at each step
_WATCHED = ("completion_length", "truncated", "repetition", "student_entropy", "teacher_entropy")


@dataclasses.dataclass
class Alarms:
  """Call it with every row; it returns the lines of the alarms that this row sets off."""

  _horizon: int = 0
  _count: int = 0
  _usual: dict[str, float] = dataclasses.field(default_factory=dict)
  _start_entropy: float | None = None
  _now: dict[str, float] = dataclasses.field(default_factory=dict)
  _told: set[str] = dataclasses.field(default_factory=set)

  def __call__(self, row: Mapping[str, Any]) -> list[str]:
    """`row`: of metrics.jsonl; values that are missing or not finite set off nothing, nor does a probe."""
    values = {name: row[name] for name in _WATCHED if isinstance(row.get(name), float)}
    broken = len(values) < len(_WATCHED) or not all(map(math.isfinite, values.values()))
    if broken or "probe_cosine" in row:
      return []
    if row["horizon"] != self._horizon:
      self._horizon, self._count, self._usual, self._now = row["horizon"], 0, {}, {}
    self._count += 1
    if self._count <= _FIRST:
      for name, value in values.items():
        self._usual[name] = self._usual.get(name, 0.0) + value / _FIRST
      if self._count == _FIRST and self._start_entropy is None:
        self._start_entropy = self._usual["student_entropy"]
      self._now = dict(self._usual)
      return []
    for name, value in values.items():
      self._now[name] = _SMOOTH * self._now[name] + (1 - _SMOOTH) * value
    lines = []
    for name, line in self._rules():
      if name not in self._told:
        self._told.add(name)
        lines.append(f"step {row['step']}: {line}")
    return lines

  def _rules(self) -> list[tuple[str, str]]:
    now, usual, found = self._now, self._usual, []
    length, entropy = now["completion_length"], now["student_entropy"]
    if length < 0.25 * usual["completion_length"]:
      found.append(
        (
          "length collapse",
          f"completions fell from {usual['completion_length']:.0f} to {length:.0f} tokens; "
          "see loss_by_position, and whether the teacher ends its answers with another token",
        )
      )
    if now["truncated"] > 0.95 and usual["truncated"] < 1 / 3:
      found.append(
        (
          "length explosion",
          f"{now['truncated']:.0%} of the rows no longer end before the horizon, "
          f"{usual['truncated']:.0%} did not before; see repetition",
        )
      )
    if now["repetition"] > 0.5 and now["repetition"] > 2 * usual["repetition"]:
      found.append(
        (
          "repetition",
          f"{now['repetition']:.0%} of what is written repeats itself; rollout.top_p=0.9 with "
          "objective.kind=lsm was made for that",
        )
      )
    if self._start_entropy and entropy < 0.1 * self._start_entropy and entropy < 0.2 * now["teacher_entropy"]:
      found.append(
        (
          "entropy collapse",
          f"the student's entropy fell to {entropy:.3g} nats, the teacher's is "
          f"{now['teacher_entropy']:.3g}; a smaller optimizer.learning_rate or forward_kl may help",
        )
      )
    return found
