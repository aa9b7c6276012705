"""From the ConfigDict of a config file to a frozen, checked `Config`, and back."""

import dataclasses
import json
from typing import Any

import ml_collections

from opd_jax.config.checks import check_together
from opd_jax.config.fields import Config
from opd_jax.config.values import read_section
from opd_jax.errors import InputError, nearest


def defaults() -> ml_collections.ConfigDict:
  """All fields with their defaults, as a ConfigDict for a config file to change."""
  values = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  # A ConfigDict keeps a field to the type of its first value; this one takes a name or a tuple of rungs.
  values.horizon.buckets = ml_collections.FieldReference(values.horizon.buckets, field_type=object)
  return values


def choose(
  config: ml_collections.ConfigDict, words: str, choices: dict[str, dict[str, Any]]
) -> ml_collections.ConfigDict:
  """The config, changed by each word of a config file's argument, such as `topd25,v5e-256`.

  Args:
    config: changed in place.
    words: any of `choices`, separated by commas, in any order; "" for none.
    choices: word -> {dotted field: value}. They are applied in this order, whatever the order of the words.

  Raises InputError for a word that is none of them.
  """
  wanted = [word for word in words.split(",") if word]
  for word in wanted:
    if word not in choices:
      raise InputError(f"the config's argument has {word!r}{nearest(word, choices)}; known: {', '.join(choices)}")
  for word, changes in choices.items():
    if word in wanted:
      config.update_from_flattened_dict(changes)
  return config


def from_config_dict(values: ml_collections.ConfigDict | dict, *, check: bool = True) -> Config:
  """The Config of a ConfigDict that may leave fields out.

  Raises InputError for an unknown field (nearest named), a wrong type, or, under `check`, values that do not go
  together.
  """
  config = read_section(Config, values)
  if check:
    check_together(config)
  return config


def to_dict(config: Config) -> dict[str, Any]:
  """Plain nested dict of JSON values, the inverse of `from_config_dict`."""
  return json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists


def changed_fields(old: dict, config: Config) -> list[str]:
  """Dotted names of the fields in which a config differs from one that `to_dict` made, of whatever version: fields that
  came later have their defaults."""
  return _differences(to_dict(from_config_dict(old, check=False)), to_dict(config))


def _differences(old: dict, new: dict, where: str = "") -> list[str]:
  """Dotted names of the fields in which two nested dicts differ."""
  names = []
  for key in {**old, **new}:
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      names += _differences(a, b, f"{where}{key}.")
    elif a != b:
      names.append(f"{where}{key}")
  return names
