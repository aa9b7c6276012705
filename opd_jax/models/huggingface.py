"""A Hugging Face folder or hub id in: `config.json` and `*.safetensors`, without torch.

Loading goes from the parameter table: for every shard of every array on this host, the window of the checkpoint
tensors that it covers is read, cast and put on its device.

    query_nhd [L, N, H, D], shard [:, n0:n1, :, d0:d1]
      <- for each layer: q_proj.weight[n0*H : n1*H, d0:d1] of the file's [N*H, D]
"""

import logging
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from opd_jax.errors import InputError, nearest
from opd_jax.hub import model_folder
from opd_jax.models.architecture import Architecture
from opd_jax.models.decoder import Model
from opd_jax.models.parameters import Parameter, nested, parameter_table, shardings
from opd_jax.models.tensors import Tensors, find_tensors, read_json

_log = logging.getLogger(__name__)

_IGNORED_KEYS = re.compile(r"rotary_emb\.inv_freq$")  # recomputed from config.json; old checkpoints carry it


def read_architecture(path: str | os.PathLike) -> Architecture:
  """The architecture of a checkpoint, without its weights. Raises InputError as `load` does."""
  config = _config_file(model_folder(path, weights=False))
  return Architecture.from_config(read_json(config), str(config))


def _config_file(folder: Path) -> Path:
  if not (folder / "config.json").is_file():
    raise InputError(f"{folder}: no config.json; not a Hugging Face checkpoint folder")
  return folder / "config.json"


def load(path: str | os.PathLike, *, dtype, mesh: jax.sharding.Mesh | None = None) -> Model:
  """Reads a checkpoint straight to its shards.

  Args:
    path: a folder, with or without tokenizer files, or a hub id `org/name[@revision]`.
    dtype: of the parameters, whatever the files hold.
    mesh: shards by `distributed.axes.TRAINING`; None: all on the default device.

  Raises InputError, before any weight is read, for a missing folder, a config.json that asks for what the decoder
  cannot do, and files that lack a parameter, hold one too many or in another shape.
  """
  folder = model_folder(path, weights=True)
  config = read_architecture(folder)
  table, placed = parameter_table(config), shardings(config, mesh)
  tensors = find_tensors(folder)
  _check_keys(tensors, config, table, folder)
  params = {name: _load_one(tensors, table[name], placed[name], jnp.dtype(dtype)) for name in table}
  return Model(nested(params), config)


def check(path: str | os.PathLike) -> None:
  """Raises InputError where `load` would, from the files' headers alone."""
  folder = model_folder(path, weights=True)
  config = read_architecture(folder)
  _check_keys(find_tensors(folder), config, parameter_table(config), folder)


def _load_one(tensors: Tensors, parameter: Parameter, sharding: NamedSharding | None, dtype: np.dtype) -> jax.Array:
  if sharding is None:  # not committed to its device, so that it can be used beside arrays of any mesh
    return jnp.asarray(_read_window(tensors, parameter, tuple((0, size) for size in parameter.shape), dtype))
  devices_of = {}  # replicas of a shard on this host share one read
  for device, index in sharding.addressable_devices_indices_map(parameter.shape).items():
    bounds = tuple(s.indices(size)[:2] for s, size in zip(index, parameter.shape, strict=True))
    devices_of.setdefault(bounds, []).append(device)
  shards = []
  for bounds, devices in devices_of.items():
    window = _read_window(tensors, parameter, bounds, dtype)
    # Waiting keeps one shard at a time on the host.
    shards += jax.block_until_ready([jax.device_put(window, device) for device in devices])
  return jax.make_array_from_single_device_arrays(parameter.shape, sharding, shards, dtype=dtype)


def _read_window(tensors: Tensors, parameter: Parameter, bounds: tuple[tuple[int, int], ...], dtype) -> np.ndarray:
  """One shard: `bounds` are (start, stop) of every axis of `parameter.shape`."""
  keys = parameter.keys[slice(*bounds[0])] if parameter.stacked else parameter.keys
  inner = bounds[1:] if parameter.stacked else bounds
  rows, cut, i = [slice(*b) for b in inner], (slice(None),) * len(inner), parameter.head_axis
  if i is not None:
    # Whole heads are read: they are contiguous in the file, and the head width is not split in practice.
    width = parameter.layer_shape[i + 1]
    rows[i : i + 2] = [slice(inner[i][0] * width, inner[i][1] * width)]
    cut = (*cut[: i + 1], slice(*inner[i + 1]), *cut[i + 2 :])
  shape = [stop - start for start, stop in inner]
  out = np.empty((len(keys), *shape), dtype)
  for layer, key in enumerate(keys):
    found = tensors.read(key, tuple(rows))
    if i is not None:
      found = found.reshape(*found.shape[:i], -1, width, *found.shape[i + 1 :])[cut]
    out[layer] = found
  return out if parameter.stacked else out[0]


def _check_keys(tensors: Tensors, config: Architecture, table: dict, folder: Path) -> None:
  """Every parameter there, in its shape; every tensor used, or known and named as ignored."""
  wanted = {key: parameter.stored_shape for parameter in table.values() for key in parameter.keys}
  missing, spare = sorted(wanted.keys() - tensors.keys), tensors.keys - wanted.keys()
  if missing:
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    hint = nearest(missing[0], spare)
    raise InputError(f"{folder}: no tensor `{missing[0]}`{others}, which config.json calls for{hint}")
  ignored = sorted(key for key in spare if _IGNORED_KEYS.search(key) or (key == "lm_head.weight" and config.tied_head))
  unexpected = sorted(spare - set(ignored))
  if unexpected:
    raise InputError(
      f"{folder}: holds {len(unexpected)} tensor(s) that a {config.model_type} decoder has no place for: "
      f"{', '.join(unexpected[:3])}{', ...' if len(unexpected) > 3 else ''}"
    )
  for key, shape in wanted.items():
    tensors.check(key, shape)
  if "lm_head.weight" in ignored:
    _check_tied(tensors, config)
  if ignored:
    _log.info("%s: ignored %s", folder, ", ".join(ignored))


def _check_tied(tensors: Tensors, config: Architecture) -> None:
  """A stored head beside a tied embedding must be the same; a few rows, spread out, tell."""
  tensors.check("lm_head.weight", (config.vocab_size, config.hidden_size))
  for row in np.linspace(0, config.vocab_size - 1, min(64, config.vocab_size), dtype=int):
    window = (slice(int(row), int(row) + 1), slice(None))
    head, embed = tensors.read("lm_head.weight", window), tensors.read("model.embed_tokens.weight", window)
    if not np.array_equal(head, embed):
      raise InputError(
        f"{tensors.file('lm_head.weight')}: `tie_word_embeddings` is true, but `lm_head.weight` differs from the "
        "embedding; set it to false in config.json"
      )
