"""Model folders: tokenizers, config.json, safetensors and their index, each broken in its own way."""

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.case import Case, copy_student
from benchmarks.fuzzing.mutate import NASTY, change_bytes, change_json

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TEMPLATES = (
  "{% for",
  "{{ raise_exception('no') }}",
  "{{ messages[99].content }}",
  "{{ 1 / 0 }}",
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{% include '/etc/passwd' %}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "{{ 'x' * 10 ** 12 }}",
  "{{ '%1000000000000d' % 1 }}",
  "{{ no_such_function() }}",
)
_ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def _flags(folder: Path) -> tuple[str, ...]:
  return (f"--config.student.path={folder}",)


def tokenizer(chance: random.Random, folder: Path, base: Path) -> Case:
  """Files of a tokenizer that are cut, of another kind, or say something else; templates that are hostile."""
  student = copy_student(folder, base)
  name = chance.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"))
  path = student / name
  content = json.loads(path.read_text()) if path.exists() else {}
  match chance.randrange(8):
    case 0:
      path.write_bytes(change_bytes(chance, json.dumps(content).encode()))
      return Case(f"{name}, bytes changed", _flags(student), bad=False)
    case 1 | 2:
      path.write_text(json.dumps(change_json(chance, content)))
      return Case(f"{name}, values changed", _flags(student), bad=False)
    case 3:
      vocabulary = (whole := json.loads((student / "tokenizer.json").read_text()))["model"]["vocab"]
      token = chance.choice(sorted(vocabulary))
      vocabulary[token] = chance.choice((2**24, 2**31 - 1, 2**31, 2**40, -1, 1.5, "1", None))
      (student / "tokenizer.json").write_text(json.dumps(whole))
      return Case(f"a token whose id is {vocabulary[token]!r}", _flags(student))
    case 4:
      for file in student.glob("*token*"):
        file.unlink()
      if chance.random() < 0.5:
        os.mkfifo(student / "tokenizer.json")
      return Case("no tokenizer", _flags(student))
    case 5:
      eos = chance.choice(("</s>", [True], -1, 2**31, 1e9, {}, [[1]], "\x00", 10**30))
      (student / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
      return Case(f"an end that is {eos!r}", _flags(student))
    case 6:
      (student / name).write_bytes(
        chance.choice((b"", b"null", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b"\x00" * 99))
      )
      return Case(f"{name} that is no object", _flags(student), bad=name != "tokenizer_config.json")
    case _:
      template = chance.choice(_TEMPLATES)
      (student / "chat_template.jinja").write_text(template)
      return Case(f"a chat template {template[:40]!r}", _flags(student), bad=False)


def endless_template(chance: random.Random, folder: Path, base: Path) -> Case:
  """A chat template that does not end: a thread of it is left behind, which no other input should feel."""
  student = copy_student(folder, base)
  (student / "chat_template.jinja").write_text(_ENDLESS)
  return Case("a chat template without end", _flags(student), alone=True)


def architecture(chance: random.Random, folder: Path, base: Path) -> Case:
  """A config.json with a field that holds what it cannot, or bytes changed."""
  student = copy_student(folder, base)
  path = student / "config.json"
  content = json.loads(path.read_text())
  match chance.randrange(6):
    case 0:
      path.write_bytes(change_bytes(chance, path.read_bytes()))
      return Case("config.json, bytes changed", _flags(student), bad=False)
    case 1:
      path.write_bytes(
        chance.choice((b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 10_000, b'{"a": ' + b"1" * 5000))
      )
      return Case("config.json that is no object", _flags(student))
    case 2:
      field = chance.choice(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"))
      content[field] = chance.choice((0, -1, 1.5, "8", True, [8], {}, 2**25, 10**30, 10**400, 7))
      path.write_text(json.dumps(content))
      return Case(f"config.json with {field} = {str(content[field])[:20]}", _flags(student))
    case 3:
      other = chance.choice(("gpt2", "qwen3_moe", "mamba", None, 3, [], {"a": 1}, "x" * 10_000, "../qwen3", "Qwen3"))
      path.write_text(json.dumps(content | {"model_type": other}))
      return Case(f"config.json of model_type {str(other)[:20]!r}", _flags(student))
    case 4:
      scaling = {"rope_type": "yarn", "factor": 4.0} | {chance.choice(("factor", "rope_type")): chance.choice(NASTY)}
      content |= {"rope_scaling": scaling, "rope_theta": chance.choice((1e4, "x", [1], 10**400, float("nan")))}
      path.write_text(json.dumps(content))
      return Case("config.json with a rope of its own", _flags(student), bad=False)
    case _:
      path.write_text(json.dumps(change_json(chance, content)))
      return Case("config.json, values changed", _flags(student), bad=False)


def _written(header: Any, body: bytes, length: int | None = None) -> bytes:
  """A safetensors file: 8 bytes of the header's length, the header, the numbers."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + body


def safetensors(chance: random.Random, folder: Path, base: Path) -> Case:
  """Headers with lengths beyond the file, tensors that overlap, dtypes that there are not; pickles; bytes changed."""
  student = copy_student(folder, base)
  path = student / _WEIGHTS
  data = path.read_bytes()
  size = struct.unpack("<Q", data[:8])[0]
  header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
  key = chance.choice([name for name in header if name != "__metadata__"])
  entry = header[key]
  start, stop = entry["data_offsets"]
  match chance.randrange(12):
    case 0:
      length = chance.choice((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1, 100_000_001))
      path.write_bytes(_written(header, body, length))
      return Case(f"a header of {length} bytes", _flags(student))
    case 1:
      entry["data_offsets"] = chance.choice(
        ([start, stop + 10**12], [stop, start], [start], [0, 0, 0], [-1, 5], ["a", 1])
      )
      path.write_bytes(_written(header, body))
      return Case(f"offsets {entry['data_offsets']}", _flags(student))
    case 2:
      names = [name for name in header if name not in ("__metadata__", key)]
      header[chance.choice(names)]["data_offsets"] = [start, stop]
      path.write_bytes(_written(header, body))
      return Case("tensors that overlap", _flags(student))
    case 3:
      entry["dtype"] = chance.choice(("F64", "I8", "BOOL", "U8", "F8_E4M3", "F128", "", None, 3, "float32", "O"))
      path.write_bytes(_written(header, body))
      return Case(f"dtype {entry['dtype']!r}", _flags(student))
    case 4:
      entry["shape"] = chance.choice(([0], [-1, 4], [2**62, 2**62], [1.5], "4", None, [], [1] * 1000, [[4]], [10**30]))
      path.write_bytes(_written(header, body))
      return Case(f"shape {str(entry['shape'])[:20]}", _flags(student))
    case 5:
      renamed = chance.choice((f"{key}_", "", "\x00", "../x", "x" * 10_000, "\x1b[2J", "lm_head.bias"))
      header[renamed] = header.pop(key)
      path.write_bytes(_written(header, body))
      return Case("a tensor of another name", _flags(student))
    case 6:
      del header[key]
      path.write_bytes(_written(header, body))
      return Case("a tensor is missing", _flags(student))
    case 7:
      broken = chance.choice(
        (b"", b"{", b"[]", b"null", b"\xff" * 64, b"[" * 100_000, b'{"a": 1}', b'{"a": {}}', b"{}")
      )
      path.write_bytes(_written(broken, body))
      return Case(f"a header that is {broken[:10]!r}", _flags(student))
    case 8:
      path.write_bytes(data[: chance.randrange(len(data))])
      return Case("safetensors, cut", _flags(student))
    case 9:
      at = chance.randrange(8 + size)
      path.write_bytes(change_bytes(chance, data[: 8 + size]) if chance.random() < 0.5 else data[:at] + data[at + 1 :])
      return Case("safetensors, header changed", _flags(student), bad=False)
    case 10:
      path.unlink()
      name = chance.choice(("pytorch_model.bin", "model.pkl", _WEIGHTS))
      (student / name).write_bytes(pickle.dumps(_Opens(str(folder / "ran"))))
      return Case(f"a pickle called {name}", _flags(student))
    case _:
      path.write_bytes(data + chance.randbytes(chance.randint(1, 100)))
      return Case("safetensors, bytes behind the end", _flags(student))


class _Opens:
  """Makes a file where it is read as a pickle."""

  def __init__(self, path: str):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def index(chance: random.Random, folder: Path, base: Path) -> Case:
  """An index that names files outside of its folder, through links, or that are none."""
  student = copy_student(folder, base)
  weights = student / _WEIGHTS
  outside = folder / "outside.safetensors"
  outside.write_bytes(weights.read_bytes()[: chance.choice((0, 100, 10**9))])
  data = weights.read_bytes()
  keys = [key for key in json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]]) if key != "__metadata__"]
  weights.unlink()
  name, link = "part.safetensors", student / "part.safetensors"
  kind = chance.randrange(11)
  match kind:
    case 0:
      name = chance.choice(
        ("../outside.safetensors", str(outside), "./part.safetensors", "a/b.safetensors", "..", ".", "")
      )
    case 1:
      link.symlink_to(chance.choice(("/dev/zero", "/etc", "/proc/self/mem", "/etc/passwd", "nothing", link.name)))
    case 2:
      os.mkfifo(link)
    case 3:
      link.mkdir()
    case 4:
      name = chance.choice(
        ("x" * 300, "\x00", "part\x00.safetensors", "\n", "~/part.safetensors", _INDEX, "config.json")
      )
    case 5:
      (student / "link").symlink_to(folder)
      name = "link/outside.safetensors"
    case 6:
      link.write_bytes(data[: len(data) // 2])
    case 7:
      link.symlink_to(outside)
      outside.write_bytes(data[: chance.randrange(len(data))])
    case 8:
      broken = chance.choice(
        ("", "[]", "{", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "\x00", "null")
      )
      (student / _INDEX).write_text(broken)
      return Case(f"an index {broken!r}", _flags(student))
    case 9:
      link.write_bytes(data)
      (student / "again.safetensors").write_bytes(data)
      content = {"weight_map": dict.fromkeys(keys, name) | {keys[0]: "again.safetensors"}}
      (student / _INDEX).write_text(json.dumps(content))
      return Case("an index of two files with the same tensors", _flags(student))
    case _:
      content = {"weight_map": dict.fromkeys(keys, name), "metadata": {"total_size": len(data)}}
      link.write_bytes(data)
      (student / _INDEX).write_text(json.dumps(change_json(chance, content)))
      return Case("an index, values changed", _flags(student), bad=False)
  (student / _INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(keys, name)}))
  return Case(f"an index ({kind}) of {name[:30]!r}", _flags(student))
