"""Prompt files: bytes that are no text, text that is no JSON, JSON that is no row, rows of other things; no files."""

import json
import os
import random
from pathlib import Path

from benchmarks.fuzzing.case import Case
from benchmarks.fuzzing.mutate import change_bytes, change_json, nested

_GOOD = {"prompt": "a3b1x2:", "answer": "a3=3"}
_LONG = 10_000_000  # bytes of a line
_FEATURES = "tensorflow_datasets.core.features"
_ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "shift_jis")


def _line(**fields) -> bytes:
  return json.dumps(_GOOD | fields).encode() + b"\n"


def _messages(*contents) -> list[dict]:
  return [{"role": "user", "content": content} for content in contents]


# (name, the line that is wrong)
_LINES: tuple[tuple[str, bytes], ...] = (
  ("no JSON", b"{'prompt': 'a'}\n"),
  ("cut short", b'{"prompt": "a3b1", "ans'),
  ("a null byte", b'{"prompt": "a\x003"}\n'),
  ("null bytes alone", b"\x00" * 64 + b"\n"),
  ("no UTF-8", b'{"prompt": "\xff\xfe"}\n'),
  ("UTF-8 that is too long", b'{"prompt": "\xc0\xaf"}\n'),
  ("half a character", b'{"prompt": "a", "answer": "\\ud800"}\n'),
  ("half a character in the prompt", b'{"prompt": "\\udfff", "answer": "1"}\n'),
  ("an escape of the terminal", b'{"\\u001b[2Jprompt": "a"}\n'),
  ("a list", b"[1, 2]\n"),
  ("text", b'"prompt"\n'),
  ("a number", b"17\n"),
  ("null", b"null\n"),
  ("NaN", b"NaN\n"),
  ("a number of 5,000 digits", b'{"prompt": "a", "answer": ' + b"7" * 5000 + b"}\n"),
  ("brackets without end", b"[" * 200_000 + b"\n"),
  ("braces without end", b'{"a":' * 200_000 + b"\n"),
  ("lists in lists", nested(900).encode() + b"\n"),
  ("objects in objects", nested(900, '{"prompt":', "}", "1").encode() + b"\n"),
  ("columns in columns", nested(400, '{"prompt":[', "]}", "1").encode() + b"\n"),
  ("lists a hundred thousand deep", nested(100_000).encode() + b"\n"),
  ("a line of 10 MB that is no JSON", b"x" * _LONG + b"\n"),
  ("a prompt of 10 MB in a list", _line(prompt=["a" * _LONG])),
  ("a field name of 1 MB", json.dumps({"p" * 10**6: 1}).encode() + b"\n"),
  ("a hundred thousand fields", json.dumps({f"f{i}": i for i in range(100_000)}).encode() + b"\n"),
  ("no prompt", b'{"answer": "1"}\n'),
  ("no answer", b'{"prompt": "a3b1x2:"}\n'),
  ("an answer that is a list", _line(answer=["1"])),
  ("an answer that is null", _line(answer=None)),
  ("an answer that is true", _line(answer=True)),
  ("a prompt that is null", _line(prompt=None)),
  ("a prompt that is a number", _line(prompt=3)),
  ("a prompt that is true", _line(prompt=True)),
  ("a prompt that is an object", _line(prompt={"text": "a"})),
  ("an empty prompt", _line(prompt="")),
  ("no messages", _line(prompt=[])),
  ("a message that is text", _line(prompt=["a"])),
  ("a message without content", _line(prompt=[{"role": "user"}])),
  ("a message without a role", _line(prompt=[{"content": "a"}])),
  ("a message whose content is a list", _line(prompt=_messages(["a"]))),
  ("a message whose content is null", _line(prompt=_messages("a", None))),
  ("a message whose role is a number", _line(prompt=[{"role": 1, "content": "a"}])),
)
# What is taken as it is, or left out and counted: it must do no harm.
_HARMLESS: tuple[tuple[str, bytes], ...] = (
  ("one id twice", _line(id=1) + _line(id=1)),
  ("one key twice", b'{"prompt": "b1x2:", "prompt": "a3b1x2:", "answer": "1"}\n'),
  ("a null character, escaped", _line(prompt="a\x003")),
  ("a prompt of 10 MB", _line(prompt="a" * _LONG)),
  ("a prompt of 10 MB of other signs", _line(prompt="\U0001f600" * (_LONG // 4))),
  ("an answer of 10 MB", _line(answer="1" * _LONG)),
  ("white space alone", b" \t\r\n\x0b\n"),
  ("a number too large to be one", b'{"prompt": "a3b1x2:", "answer": 1e999}\n'),
)


def jsonl(chance: random.Random, folder: Path, base: Path) -> Case:
  """A line that is wrong among good ones; the good ones in another encoding; or a few bytes or values changed."""
  path, good = folder / "prompts.jsonl", (base / "prompts.jsonl").read_bytes()
  flags, lines = (f"--config.data.path={path}",), good.splitlines(keepends=True)
  at = chance.randrange(len(lines))
  match chance.randrange(10):
    case 0:
      encoding = chance.choice(_ENCODINGS)
      text = "".join(f'{{"prompt": "é{chance.randrange(10**6)}", "answer": "ü"}}\n' for _ in range(3))
      path.write_bytes(text.encode(encoding, errors="replace"))
      return Case(f"JSONL in {encoding}", flags, bad=encoding not in ("utf-7", "shift_jis"))
    case 1:
      path.write_bytes(chance.choice((b"", b"\n\n", b"\xef\xbb\xbf", b" ")))
      return Case("JSONL without a row", flags)
    case 2:
      path.write_bytes(change_bytes(chance, good))
      return Case("JSONL, bytes changed", flags, bad=False)
    case 3:
      row = change_json(chance, json.loads(lines[at]))
      path.write_bytes(b"".join(lines[:at]) + json.dumps(row).encode() + b"\n")
      return Case("JSONL, values changed", flags, bad=False)
    case 4:
      name, line = chance.choice(_HARMLESS)
      path.write_bytes(b"".join(lines[:at]) + line)
      return Case(f"JSONL with {name}", flags, bad=False)
    case 5:
      path.write_bytes(chance.randbytes(chance.randint(1, 5000)))
      return Case("JSONL of noise", flags)
    case _:
      name, line = chance.choice(_LINES)
      path.write_bytes(b"".join(lines[:at]) + line)
      return Case(f"JSONL with {name}, line {at + 1}", flags)


def no_file(chance: random.Random, folder: Path, base: Path) -> Case:
  """A path where there is no file that can be read: pipes, devices, links that lead nowhere, other endings."""
  path = folder / chance.choice(("prompts.jsonl", "prompts.parquet"))
  kind = chance.randrange(8)
  match kind:
    case 0:
      os.mkfifo(path)
    case 1:
      path.symlink_to(chance.choice(("/dev/zero", "/dev/tty", "/proc/self/mem", "/etc")))
    case 2:
      path.symlink_to(folder / "nothing")
    case 3:
      path.symlink_to(path)
    case 4:
      path.mkdir()
    case 5:
      path = folder / f"prompts{chance.choice(('.csv', '.json', '.txt', '', '.jsonl.gz', '.PARQUET', '.npy', '.pkl'))}"
      path.write_bytes((base / "prompts.jsonl").read_bytes())
    case 6:
      path = folder / chance.choice(("prompts.jsnl", "x" * 300, "a/b/c.jsonl", "folder:train"))
    case _:
      path = Path(f"{folder}:{chance.choice(('train', 'test', ''))}{chance.randrange(1000)}")
  return Case(f"no prompt file ({kind}) {path.name[:30]}", (f"--config.data.path={path}",))


def parquet(chance: random.Random, folder: Path, base: Path) -> Case:
  """Columns of other types, no rows, no prompts; or a good file with bytes changed."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  path, text = folder / "prompts.parquet", ["a3b1x2:", "b2x1:"]
  flags = (f"--config.data.path={path}",)
  columns = {
    "numbers": pa.array([1, 2]),
    "bytes that are no text": pa.array([b"\xff", b"\xfe"], pa.binary()),
    "nothing": pa.nulls(2),
    "lists": pa.array([["a"], ["b"]]),
    "dates": pa.array([2**62, 0], pa.timestamp("us")),
    "objects": pa.array([{"a": 1}, {"a": 2}]),
    "one that is missing": pa.array(["a3b1x2:", None]),
    "empty text": pa.array(["", "a"]),
  }
  if chance.random() < 0.5:
    what = chance.choice([*columns, "no rows", "no column"])
    prompts = columns.get(what, pa.array(text))
    table = pa.table({"question" if what == "no column" else "prompt": prompts, "answer": pa.array(["1", "2"])})
    pq.write_table(table[:0] if what == "no rows" else table, path)
    return Case(f"parquet with {what}", flags)
  pq.write_table(pa.table({"prompt": text * 50, "answer": text * 50}), path)
  path.write_bytes(change_bytes(chance, path.read_bytes()))
  return Case("parquet, bytes changed", flags, bad=False)


def tfds(chance: random.Random, folder: Path, base: Path) -> Case:
  """A folder of tensorflow-datasets whose descriptions say something else, or whose rows are gone."""
  info = {
    "name": "set",
    "version": "1.0.0",
    "fileFormat": "array_record",
    "splits": [{"name": "train", "shardLengths": ["2"], "numBytes": "64", "filepathTemplate": "{DATASET}-{SPLIT}"}],
  }
  features = {
    "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
    "featuresDict": {"features": {"prompt": {"pythonClassName": f"{_FEATURES}.text_feature.Text"}}},
  }
  for name, content in (("dataset_info.json", info), ("features.json", features)):
    if (roll := chance.random()) < 0.1:
      continue
    if roll < 0.5:
      content = change_json(chance, content)
    text = json.dumps(content).encode()
    (folder / name).write_bytes(change_bytes(chance, text) if roll > 0.8 else text)
  if chance.random() < 0.5:
    (folder / "set-train.array_record-00000-of-00001").write_bytes(chance.randbytes(chance.choice((0, 100, 70_000))))
  return Case("folder of tensorflow-datasets", (f"--config.data.path={folder}",))
