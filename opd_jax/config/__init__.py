"""What a run is: frozen, checked dataclasses, made from the ConfigDict of a config file.

A config file holds `get_config(arg="")`, starts from `defaults()` and changes what it needs. An unknown field is an
error that names the nearest known one.

    fields.py    every field, with its default and its meaning
    values.py    names and types, one value at a time
    checks.py    values that must go together
    reading.py   from a ConfigDict to a Config, and back
"""

from opd_jax.config.checks import DTYPES, HORIZONS
from opd_jax.config.fields import (
  STUDENT,
  Config,
  Data,
  Eval,
  HorizonConfig,
  Lora,
  Objective,
  Optimizer,
  Reference,
  Rollout,
  Student,
  Teacher,
)
from opd_jax.config.reading import changed_fields, choose, defaults, from_config_dict, to_dict

__all__ = [
  "DTYPES",
  "HORIZONS",
  "STUDENT",
  "Config",
  "Data",
  "Eval",
  "HorizonConfig",
  "Lora",
  "Objective",
  "Optimizer",
  "Reference",
  "Rollout",
  "Student",
  "Teacher",
  "changed_fields",
  "choose",
  "defaults",
  "from_config_dict",
  "to_dict",
]
