"""Values of a config file as frozen dataclasses with typed fields: unknown names and wrong types end here."""

import dataclasses
import re
import sys
import typing
from typing import Any

import ml_collections

from opd_jax import horizon as horizons
from opd_jax.errors import InputError, nearest

_RUNG = re.compile("[0-9]{1,9}")


def read_section(cls, values, where: str = ""):
  """The dataclass `cls` of a ConfigDict or dict; `where`: its dotted name and a dot. InputError for what is unfit."""
  if not isinstance(values, ml_collections.ConfigDict | dict):
    raise InputError(f"{f'config.{where}'.rstrip('.')} is {shown(values)}: it must be a section of fields")
  fields = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in fields:
      raise InputError(f"unknown config field `{where}{name}`{nearest(name, fields)}; known: {', '.join(fields)}")
  made = {}
  for name in fields:
    if name not in values:
      continue
    value, hint = values[name], hints[name]
    made[name] = (
      read_section(hint, value, f"{where}{name}.")
      if dataclasses.is_dataclass(hint)
      else _typed(value, hint, where + name)
    )
  return cls(**made)


def _typed(value, hint, name: str):
  """`value` as `hint` wants it, or InputError. An int serves for a float; nothing else is converted."""
  if name == "horizon.buckets":
    return _buckets(value)
  if hint == tuple[str, ...]:
    return _texts(value, name)
  if hint is float and type(value) in (int, float):
    if not abs(value) <= sys.float_info.max:
      raise InputError(f"config.{name} is {shown(value)}: it must be a finite number")
    return float(value)
  if type(value) is not hint:
    raise InputError(f"config.{name} is {shown(value)}: it must be {_article(hint)}, not {_article(type(value))}")
  return _text(value, name) if hint is str else value


def _text(value: str, name: str) -> str:
  """A text that names a file, goes into one, or is made into tokens. InputError where none of these takes it."""
  if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
    raise InputError(f"config.{name} is {shown(value)}: it holds a zero or half a character; give UTF-8 text")
  return value


def _buckets(value) -> str | tuple[int, ...]:
  """A policy's name, or an ascending tuple of rungs; a flag brings the latter as text: "64,128" or "(64, 128)"."""
  if isinstance(value, str) and value.strip("()[], ")[:1].isdigit():
    value = [part for part in value.strip("()[] ").split(",") if part.strip()]
    value = [int(part) if _RUNG.fullmatch(part.strip()) else part for part in value]
  if isinstance(value, str):
    try:
      if value != "auto":
        horizons.ladder_rule(value)
    except ValueError as error:
      raise InputError(f"config.horizon.buckets is {value!r}: {error}") from error
    return value
  rungs = tuple(value) if isinstance(value, list | tuple) else ()
  if not rungs or any(type(rung) is not int or rung < 1 for rung in rungs) or list(rungs) != sorted(set(rungs)):
    raise InputError(
      f"config.horizon.buckets is {shown(value)}: it must be ascending positive integers, such as (64, 128)"
    )
  return rungs


def _texts(value, name: str) -> tuple[str, ...]:
  """A tuple of texts."""
  if not isinstance(value, list | tuple) or any(not isinstance(text, str) or not text for text in value):
    raise InputError(f"config.{name} is {shown(value)}: it must be a tuple of texts, such as ('<', 'think')")
  return tuple(_text(text, name) for text in value)


def shown(value: Any) -> str:
  """As a message shows it."""
  try:
    return repr(value)
  except Exception as error:  # a number of more digits than Python writes, an object of a config file
    return f"{_article(type(value))} that cannot be shown ({type(error).__name__})"


def _article(kind: type) -> str:
  return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}.get(kind, f"a {kind.__name__}")
