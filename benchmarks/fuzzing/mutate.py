"""Bytes and JSON, changed at random: the same chance gives the same change."""

import copy
import random
from typing import Any

# What a field may hold that nobody meant it to.
NASTY = (
  None,
  True,
  False,
  0,
  -1,
  1.5,
  -0.0,
  1e308,
  10**30,
  10**400,
  2**31,
  float("nan"),
  float("inf"),
  "",
  "\x00",
  "\x1b[2J\n\n",
  "\u202e\ud800",
  "x" * 10_000,
  "../../etc/passwd",
  [],
  [[[[[]]]]],
  {},
  {"": None},
  ["a", 1, None],
  [0] * 10_000,
)


def change_bytes(chance: random.Random, data: bytes) -> bytes:
  """One to four changes: flipped bits, a cut, bytes put in, left out, or said again."""
  changed = bytearray(data)
  for _ in range(chance.randint(1, 4)):
    at = chance.randrange(len(changed) + 1)
    match chance.randrange(5):
      case 0 if at < len(changed):
        changed[at] ^= 1 << chance.randrange(8)
      case 1:
        del changed[at:]
      case 2:
        changed[at:at] = chance.randbytes(chance.randint(1, 16))
      case 3:
        del changed[at : at + chance.randint(1, 64)]
      case _:
        changed[at:at] = changed[at : at + chance.randint(1, 64)]
  return bytes(changed)


def change_json(chance: random.Random, value: Any) -> Any:
  """A copy with one to three entries, at any depth, removed, renamed or replaced by what is NASTY."""
  changed = copy.deepcopy(value)
  for _ in range(chance.randint(1, 3)):
    changed = _change_one(chance, changed)
  return changed


def _change_one(chance: random.Random, value: Any) -> Any:
  if not value or not isinstance(value, dict | list) or chance.random() < 0.05:
    return copy.deepcopy(chance.choice(NASTY))
  key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
  inner = value[key]
  if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
    value[key] = _change_one(chance, inner)
  elif chance.random() < 0.25:
    del value[key]
  elif isinstance(value, dict) and chance.random() < 0.2:
    value[chance.choice(("", f"{key}_", key.upper(), "\x00"))] = value.pop(key)
  else:
    value[key] = copy.deepcopy(chance.choice(NASTY))
  return value


def nested(depth: int, opening: str = "[", closing: str = "]", inside: str = "") -> str:
  """`[[[...]]]`."""
  return opening * depth + inside + closing * depth
