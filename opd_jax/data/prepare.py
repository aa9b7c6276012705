"""A data set made once in the form that tensorflow-datasets reads without TensorFlow, array_record, and then reused.

    a .jsonl or .parquet file, a folder of them   ─► checked row by row ─┐
    gsm8k, the name of a builder of TFDS's own    ─► downloaded ─────────┴─► OUT/NAME/VERSION, a folder for data.path

Fields keep their names and rows their order: a run reads from the folder what it would have read from the files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opd_jax.data.messages import answer_in, prompt_in
from opd_jax.data.rows import FILE_ENDINGS, kind_of, locate, read_rows
from opd_jax.data.tfds_builders import is_name, prepare_named
from opd_jax.errors import InputError

_VERSION = "1.0.0"
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")  # train-00000-of-00002-0a1b2c.parquet
_MESSAGE = ("role", "content")


def prepare(
  path: str | os.PathLike,
  *,
  prompt_field: str = "",
  answer_field: str = "",
  teacher_prompt_field: str = "",
  out: str | os.PathLike,
) -> str:
  """Makes a TFDS folder of a data set where it is not there yet.

  Args:
    path: a `.jsonl` or `.parquet` file, a folder of them (each belongs to the split that its name says, as in data sets
      of the Hugging Face hub), or the name of a builder of tensorflow-datasets, such as `gsm8k` or `race/high`.
    prompt_field: dotted path of the prompt, text or a list of chat messages; files need it.
    answer_field, teacher_prompt_field: dotted paths of the answer, text or a number, and of a prompt that the teacher
      sees instead; "" where there is none.
    out: the folder that prepared sets stand in.

  Returns:
    The set's folder in `out`.

  Raises:
    InputError: no such file and no such name (the nearest is named), a field or a row that is missing or malformed, a
      builder that needs TensorFlow, a download that fails, or a folder that is there but was made of something else.
  """
  fields = {"prompt_field": prompt_field, "answer_field": answer_field, "teacher_prompt_field": teacher_prompt_field}
  fields = {role: field for role, field in fields.items() if field}
  out = Path(os.path.expanduser(out))
  if is_name(os.fspath(path)) and not os.path.exists(path):
    return prepare_named(os.fspath(path), tuple(fields.values()), out)
  source, _ = locate(path)
  if "prompt_field" not in fields:
    raise InputError(f"give the field of {source} that holds the prompt: prompt_field (--prompt_field=NAME)")
  return _Files(_set_name(source), fields, _split_files(source)).prepare(out)


@dataclasses.dataclass(frozen=True)
class _Files:
  """A data set in files.

  Attributes:
    name: what tensorflow-datasets calls it.
    fields: role -> dotted path.
    splits: name -> files, in the order of their rows.
  """

  name: str
  fields: dict[str, str]
  splits: dict[str, list[Path]]

  def prepare(self, out: Path) -> str:
    folder, made_of = out / self.name / _VERSION, self._fingerprint()
    if folder.exists():
      if _made_of(folder) == made_of:
        return str(folder)
      raise InputError(
        f"{folder} is there already, made of other rows or fields: remove it, or choose another folder (--out)"
      )
    kinds = self._check()
    try:
      with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        self._builder(kinds, made_of, out).download_and_prepare(download_dir=downloads)
    except OSError as error:
      raise InputError(f"cannot write {folder}: {error}") from error
    return str(folder)

  def _values(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, dotted path -> value) of each row."""
    for file in self.splits[split]:
      for place, row in read_rows(file, tuple(self.fields.values())):
        yield (
          place,
          {
            field: answer_in(row, field, place) if role == "answer_field" else _storable(row, field, place)
            for role, field in self.fields.items()
          },
        )

  def _check(self) -> dict[str, type]:
    """Reads everything once, so that what is wrong is found before anything is written. Returns each field's kind."""
    first: dict[str, Any] = {}
    for split, files in self.splits.items():
      rows = 0
      for place, values in self._values(split):
        rows += 1
        for field, value in values.items():
          if type(value) is not type(first.setdefault(field, value)):
            kinds = kind_of(value), kind_of(first[field])
            raise InputError(f"{place}: `{field}` is {kinds[0]}, and {kinds[1]} in the first row: make them alike")
      if not rows:
        raise InputError(f"{files[0]} is empty: it has no rows")
    return {field: type(value) for field, value in first.items()}

  def _builder(self, kinds: dict[str, type], made_of: str, out: Path):
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    files, text = self, tfds.features.Text()
    messages = tfds.features.Sequence(dict.fromkeys(_MESSAGE, text))
    features = tfds.features.FeaturesDict(
      _nested({field: messages if kind is list else text for field, kind in kinds.items()})
    )

    class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      name = files.name
      VERSION = tfds.core.Version(_VERSION)

      def _info(self):
        metadata = tfds.core.MetadataDict(made_of=made_of)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True, metadata=metadata)

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in files.splits}

      def _generate_examples(self, split):
        for index, (_, values) in enumerate(files._values(split)):
          yield index, _nested(values)

    return Rows(data_dir=out, file_format="array_record")

  def _fingerprint(self) -> str:
    """Of everything that the prepared set depends on."""
    named = {split: [file.name for file in files] for split, files in self.splits.items()}
    digest = hashlib.sha256(json.dumps([self.fields, named]).encode())
    for file in (file for files in self.splits.values() for file in files):
      with file.open("rb") as content:
        digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _set_name(source: Path) -> str:
  """A name that tensorflow-datasets takes: the folder's, or of a file its folder's and its own."""
  source = source.resolve()
  name = source.name if source.is_dir() else f"{source.parent.name}_{source.stem}"
  name = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
  return name if name[:1].isalpha() else f"set_{name}"


def _split_files(source: Path) -> dict[str, list[Path]]:
  """{split: files}: `test.jsonl`, `data/test-00000-of-00002.parquet` and `test/0000.parquet` are all of `test`.

  Raises InputError where there is none, or where a split stands in several folders or formats: several sets, then.
  """
  if (source / "dataset_info.json").exists():
    raise InputError(f"{source} is prepared already: give it as data.path")
  files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.suffix in FILE_ENDINGS)
  found: dict[str, dict[tuple[Path, str], list[Path]]] = {}
  for file in files:
    numbered = file.stem.isdigit()
    split = file.parent.name if numbered else _SHARD.sub("", file.stem)
    home = file.parent.parent if numbered else file.parent
    split = re.sub(r"[^\w-]+", "_", split, flags=re.ASCII)
    found.setdefault(split, {}).setdefault((home, file.suffix), []).append(file)
  if not found:
    raise InputError(f"{source} has neither .jsonl nor .parquet files")
  if "all" in found:
    raise InputError(f"{source}: tensorflow-datasets keeps the split name `all` for all rows: rename the file")
  for split, homes in found.items():
    if len(homes) > 1:
      named = ", ".join(f"{home}/*{suffix}" for home, suffix in homes)
      raise InputError(f"{source} has the split `{split}` {len(homes)} times, in {named}: give one of these folders")
  return {split: files for split, homes in found.items() for files in homes.values()}


def _storable(row: dict, field: str, place: str) -> str | list[dict[str, str]]:
  """A prompt as the prepared set holds it."""
  prompt = prompt_in(row, field, place)
  if isinstance(prompt, str):
    return prompt
  more = sorted({name for message in prompt for name, value in message.items() if name not in _MESSAGE and value})
  if more:
    raise InputError(f"{place}: messages of `{field}` have {', '.join(more)}, and a prepared set has role and content")
  return [{name: message[name] for name in _MESSAGE} for message in prompt]


def _nested(values: dict[str, Any]) -> dict[str, Any]:
  """{"a.b": 1} -> {"a": {"b": 1}}"""
  tree: dict[str, Any] = {}
  for field, value in values.items():
    *parents, last = field.split(".")
    functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)[last] = value
  return tree


def _made_of(folder: Path) -> str:
  """The fingerprint of what a folder was prepared from; "" where another program made it."""
  try:
    content = json.loads((folder / "metadata.json").read_bytes())
  except (OSError, ValueError, RecursionError):  # none, or what a killed write left
    return ""
  return content.get("made_of", "") if isinstance(content, dict) else ""
