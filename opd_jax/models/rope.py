"""Rotary position embedding: which frequencies a config.json asks for, and the rotation of queries and keys.

Four kinds, as far as Llama 3.x, Qwen2/2.5 and Qwen3 use them: `default`, `linear` (all wavelengths stretched by one
factor), `llama3` (long wavelengths stretched, short ones kept, a ramp between) and `yarn` (the same by parts, with
a factor on the attention logits). Kinds whose frequencies depend on the length of the input (`dynamic`, `longrope`)
are refused: a prompt and its completion would be rotated differently at different lengths.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.errors import InputError, nearest

# kind -> (fields it must have, fields it may have), beside rope_theta and rope_type
_FIELDS = {
  "default": ((), ()),
  "linear": (("factor",), ()),
  "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
  "yarn": (
    ("factor",),
    (
      "original_max_position_embeddings",
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate",
    ),
  ),
}
INFINITE = 1e300  # a number in a file may be an integer of any length, which no float holds
_DEFAULT_THETA = 10_000.0  # what transformers takes where a config.json names none


@dataclass(frozen=True)
class Rope:
  """The rotary embedding of one architecture; fields carry their config.json names, None where the kind has none."""

  theta: float
  kind: str = "default"
  factor: float | None = None
  original_max_position_embeddings: int | None = None
  low_freq_factor: float | None = None
  high_freq_factor: float | None = None
  attention_factor: float | None = None
  beta_fast: float | None = None
  beta_slow: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool | None = None

  @classmethod
  def from_config(cls, config: dict, max_position: int, where: str) -> "Rope":
    """Reads either spelling: `rope_theta` + `rope_scaling`, or transformers 5's `rope_parameters`.

    Raises InputError where the two spellings disagree, for an unknown kind and for a field its kind does not have.
    """
    old, new = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
      if not isinstance(value, dict):
        raise InputError(f"{where}: `{name}` is {value!r}, not an object with `rope_type` and its fields")
    if old and new and {**old, "rope_theta": None} != {**new, "rope_theta": None}:
      raise InputError(f"{where}: `rope_scaling` and `rope_parameters` disagree; keep one of them")
    fields = {name: value for name, value in {**old, **new}.items() if value is not None}

    given = [source["rope_theta"] for source in (config, old, new) if source.get("rope_theta") is not None]
    if any(theta != given[0] for theta in given):
      raise InputError(f"{where}: `rope_theta` is given as {' and as '.join(map(str, given))}; keep one")
    thetas = given[:1]
    fields.pop("rope_theta", None)

    spelled = {str(fields.pop(name)) for name in ("rope_type", "type") if name in fields} or {"default"}
    kind = spelled.pop()
    if spelled or kind not in _FIELDS:
      named = f"`{kind}`" if not spelled else f"`{kind}` and `{spelled.pop()}`"
      raise InputError(f"{where}: rope type {named} is not supported, only {', '.join(_FIELDS)}")
    if fields.pop("partial_rotary_factor", 1.0) != 1.0:
      raise InputError(f"{where}: `partial_rotary_factor` other than 1 is not supported")

    required, optional = _FIELDS[kind]
    for name in fields:
      if name not in required + optional:
        raise InputError(f"{where}: rope type `{kind}` has no field `{name}`{nearest(name, required + optional)}")
    for name in required:
      if name not in fields:
        raise InputError(f"{where}: rope type `{kind}` needs the field `{name}`")
    for name, value in [("rope_theta", t) for t in thetas] + list(fields.items()):
      number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < INFINITE
      if not (isinstance(value, bool) if name == "truncate" else number):
        raise InputError(
          f"{where}: rope field `{name}` is {value!r}, not a {'bool' if name == 'truncate' else 'number > 0'}"
        )
    if "original_max_position_embeddings" in optional:
      # transformers lets the top-level field win over the one inside, and falls back to the context length.
      outer = config.get("original_max_position_embeddings")
      if outer is not None and (type(outer) is not int or not 0 < outer < INFINITE):
        raise InputError(f"{where}: `original_max_position_embeddings` is {outer!r}, not a positive integer")
      fields.setdefault("original_max_position_embeddings", max_position)
      fields["original_max_position_embeddings"] = outer or fields["original_max_position_embeddings"]
    return cls(theta=float(thetas[0] if thetas else _DEFAULT_THETA), kind=kind, **fields)

  def to_config(self) -> dict:
    """`rope_theta` and `rope_scaling`: the older spelling, which every version of transformers reads."""
    required, optional = _FIELDS[self.kind]
    fields = {name: getattr(self, name) for name in required + optional if getattr(self, name) is not None}
    scaling = None if self.kind == "default" else {"rope_type": self.kind, **fields}
    return {"rope_theta": self.theta, "rope_scaling": scaling}


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
  """Angle per position of every pair of channels, [head_dim / 2] float32, and the factor on cosine and sine.

  The formulas are those of transformers' `modeling_rope_utils`, evaluated in float64.
  """
  plain = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  match rope.kind:
    case "default":
      return plain.astype(np.float32), 1.0
    case "linear":
      return (plain / rope.factor).astype(np.float32), 1.0
    case "llama3":
      return _llama3(rope, plain).astype(np.float32), 1.0
    case "yarn":
      return _yarn(rope, plain, head_dim).astype(np.float32), _yarn_attention_factor(rope)
  raise AssertionError(rope.kind)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
  """Wavelengths beyond the original context are stretched, those well inside kept, a linear ramp between."""
  turns = rope.original_max_position_embeddings * plain / (2 * math.pi)  # rotations within the original context
  kept = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
  return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
  """YaRN's NTK-by-parts (arXiv 2309.00071, section 3.2): the ramp runs over channels instead of wavelengths."""

  def channel(rotations: float) -> float:
    length = rope.original_max_position_embeddings
    return head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

  low, high = channel(rope.beta_fast or 32), channel(rope.beta_slow or 1)
  if rope.truncate is not False:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  high += 0.001 if low == high else 0.0
  stretched = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0.0, 1.0)
  return stretched * plain / rope.factor + (1 - stretched) * plain


def _yarn_attention_factor(rope: Rope) -> float:
  def scale(weight: float) -> float:
    return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return scale(rope.mscale) / scale(rope.mscale_all_dim)
  return scale(1.0)


def angles(rope: Rope, head_dim: int, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of every position, each [B, T, head_dim / 2] float32."""
  frequency_h, factor = frequencies(rope, head_dim)
  angle_bth = positions_bt.astype(jnp.float32)[..., None] * frequency_h
  return jnp.cos(angle_bth) * factor, jnp.sin(angle_bth) * factor


def rotate(x_btnh: jax.Array, cos_bth: jax.Array, sin_bth: jax.Array) -> jax.Array:
  """Rotates queries or keys [B, T, N, H]; channel i pairs with channel i + H/2, as in Hugging Face checkpoints."""
  first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos_bth[:, :, None], sin_bth[:, :, None]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_btnh.dtype)
