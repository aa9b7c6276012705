"""A model out as a Hugging Face folder: what `transformers.AutoModelForCausalLM` loads, and what `load` reads back."""

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from opd_jax.errors import InputError
from opd_jax.hub import model_folder
from opd_jax.models.decoder import Model
from opd_jax.models.huggingface import read_architecture
from opd_jax.models.parameters import ParameterPath, parameter_table
from opd_jax.models.tensors import INDEX, SINGLE, read_json

# Files beside the weights that belong to a model and are taken over from the checkpoint it came from.
_COMPANIONS = (
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)


def save(
  model: Model,
  path: str | os.PathLike,
  *,
  source: str | os.PathLike | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes `config.json` and safetensors in the model's dtype; all of the folder appears at once, or none of it.

  Args:
    model: the model; its arrays may be sharded over the devices of this process.
    path: a folder that does not exist yet, or is empty.
    source: the checkpoint that the model started from, as `load` takes it: its tokenizer and generation files are
      copied, and every field of its config.json is kept.
    max_shard_bytes: size above which the weights are cut into several files with an index.

  Raises InputError where `path` is taken, or `source` is of another architecture.
  """
  path = Path(os.path.expanduser(path)).absolute()
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise InputError(f"{path}: exists already; choose another folder, or remove it first")
  config, companions = _config_and_companions(model, source)
  with _appearing(path) as folder:
    _write_json(folder / "config.json", config)
    _write_weights(model, folder, max_shard_bytes)
    for file in companions:
      shutil.copyfile(file, folder / file.name)


def _config_and_companions(model: Model, source: str | os.PathLike | None) -> tuple[dict, list[Path]]:
  dtype = model.params["embed_vd"].dtype.name
  if source is None:
    return {**model.config.to_config(), "dtype": dtype}, []
  folder = model_folder(source, weights=False)
  if read_architecture(folder) != model.config:
    raise InputError(f"{source}: its config.json describes another architecture than the model that is to be saved")
  config = read_json(folder / "config.json")
  # transformers 5 writes `dtype`, before it was `torch_dtype`; where both stand they must not disagree.
  config.update(dict.fromkeys({"torch_dtype", "dtype"} & config.keys() or {"dtype"}, dtype))
  return config, [folder / name for name in _COMPANIONS if (folder / name).is_file()]


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
  """A hidden sibling folder to write in, renamed to `path` at the end: a kill leaves no half-written `path`."""
  partial = path.parent / f".{path.name}.partial-{uuid.uuid4().hex[:8]}"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    yield partial
    partial.rename(path)
  except OSError as error:  # a full disk, no permission, no such place, or somebody else was there first
    raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write_weights(model: Model, folder: Path, max_shard_bytes: int) -> None:
  arrays: dict[ParameterPath, jax.Array] = traverse_util.flatten_dict(model.params)
  table = parameter_table(model.config)
  tensors = [(key, name, layer) for name, p in table.items() for layer, key in enumerate(p.keys)]
  shards, size = [[]], 0
  for tensor in tensors:
    bytes_ = math.prod(table[tensor[1]].stored_shape) * arrays[tensor[1]].dtype.itemsize
    if shards[-1] and size + bytes_ > max_shard_bytes:
      shards, size = [*shards, []], 0
    shards[-1].append(tensor)
    size += bytes_

  def stored(name: ParameterPath, layer: int) -> np.ndarray:
    array = arrays[name][layer] if table[name].stacked else arrays[name]
    return np.ascontiguousarray(np.asarray(array).reshape(table[name].stored_shape))

  weight_map, total = {}, 0
  for number, shard in enumerate(shards, start=1):
    file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    content = {key: stored(name, layer) for key, name, layer in shard}  # one shard at a time in host memory
    save_file(content, folder / file, metadata={"format": "pt"})  # without the format transformers refuses the file
    weight_map.update(dict.fromkeys(content, file))
    total += sum(tensor.nbytes for tensor in content.values())
  if len(shards) > 1:
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: dict) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
