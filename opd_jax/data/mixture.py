"""Several data files as one, each with a weight: `data.mixture`.

"0.7 * gsm8k/train.jsonl; prompt_field=question; answer_field=answer"      what is not said is as in `data`
"0.3 * dapo/train.parquet; suffix="                                        no weight: 1
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from opd_jax.config import Data
from opd_jax.data.messages import Framing
from opd_jax.data.options import read_options
from opd_jax.data.prompts import PromptSet, read_prompts
from opd_jax.errors import InputError

_FRAMED = ("system", "suffix")
_LARGEST_WEIGHT = 1e9
_OPTIONS = ("prompt_field", "answer_field", "teacher_prompt_field", "teacher_field", "limit", *_FRAMED)


@dataclasses.dataclass(frozen=True)
class Part:
  """A file of prompts, and how it is read.

  Attributes:
    path, prompt_field, answer_field, limit, framing: as `read_prompts` takes them.
    teacher_prompt_field: its `teacher_field`.
    teacher_field: its `route_field`.
    weight: above 0.
  """

  path: str
  weight: float
  prompt_field: str
  answer_field: str
  teacher_prompt_field: str
  teacher_field: str
  limit: int
  framing: Framing


def list_parts(data: Data) -> tuple[Part, ...]:
  """The files of a config: that of `data.path` alone, or those of `data.mixture`.

  Raises InputError for a text that names no file, a weight that is no number above 0, and an unknown option.
  """
  named = (data.prompt_field, data.answer_field, data.teacher_prompt_field, data.teacher_field)
  fields = (*named, data.limit, Framing.of(data))
  if data.path:
    return (Part(data.path, 1.0, *fields),)
  return tuple(_parse(text, Part("", 1.0, *fields)) for text in data.mixture)


def read_mixture(parts: Sequence[Part], **read) -> tuple[PromptSet, tuple[int, ...]]:
  """The prompts of all parts, one part after the other, and how many each has.

  `read`: what `read_prompts` takes beside a part's own. Raises InputError as it does.
  """
  sets = [
    read_prompts(
      part.path,
      prompt_field=part.prompt_field,
      answer_field=part.answer_field,
      teacher_field=part.teacher_prompt_field,
      route_field=part.teacher_field,
      limit=part.limit,
      framing=part.framing,
      **read,
    )
    for part in parts
  ]
  columns = {
    field.name: tuple(itertools.chain.from_iterable(getattr(each, field.name) for each in sets))
    for field in dataclasses.fields(PromptSet)
    if field.name != "dropped_long"
  }
  return PromptSet(dropped_long=sum(each.dropped_long for each in sets), **columns), tuple(map(len, sets))


def _parse(text: str, usual: Part) -> Part:
  """`WEIGHT * PATH; option=value; ...`"""
  named, *options = text.split(";")
  first, star, rest = (side.strip() for side in named.partition("*"))
  path = rest if star else first
  try:
    weight = float(first) if star else 1.0
  except ValueError:
    weight = math.nan
  if not path or not 1 / _LARGEST_WEIGHT <= weight <= _LARGEST_WEIGHT:
    raise InputError(
      f"config.data.mixture has {text!r}: write WEIGHT * PATH with a weight from {1 / _LARGEST_WEIGHT:g} to "
      f"{_LARGEST_WEIGHT:g}, such as '0.7 * train.jsonl', and options after semicolons"
    )
  changes, framed = {"path": path, "weight": weight}, {}
  for name, value in read_options(options, _OPTIONS, f"config.data.mixture: {path}").items():
    if name in _FRAMED:
      framed[name] = value  # with the spaces and line breaks that it has
    elif name == "limit":
      changes[name] = _count(value.strip(), path)
    else:
      changes[name] = _field(name, value.strip(), path, getattr(usual, name))
  return dataclasses.replace(usual, **changes, framing=dataclasses.replace(usual.framing, **framed))


def _count(value: str, path: str) -> int:
  if not (value.isascii() and value.isdigit() and len(value) < 10):
    raise InputError(f"config.data.mixture: limit of {path} is {value!r}: it must be 0 (all) or more")
  return int(value)


def _field(name: str, value: str, path: str, usual: str) -> str:
  """What a run reads it reads of every part, and what it does not, of none."""
  if bool(value) != bool(usual):
    raise InputError(
      f"config.data.mixture: {name} of {path} is {value!r}, and config.data.{name} is {usual!r}: give both or neither"
    )
  return value
