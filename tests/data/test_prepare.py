"""Data sets made once and reused: what is read from the prepared folder against what is read from the files."""

import importlib.util
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opd_jax.data import prepare, read_prompts, split_sizes
from opd_jax.data.tfds_builders import known_builders
from opd_jax.errors import InputError

FIELDS = {"prompt_field": "question", "answer_field": "answer"}


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), path)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


def rows_of(count, first=0):
  return [{"question": f"How many are {i} — é?", "answer": f"It is #### {i}", "other": i} for i in range(first, count)]


def read(path, tokenizer, **fields):
  return read_prompts(path, tokenizer=tokenizer, max_prompt=200, **(fields or FIELDS))


def refusal(path, out, **fields):
  with pytest.raises(InputError) as raised:
    prepare(path, out=out, **fields)
  assert "\n" not in str(raised.value)
  return str(raised.value)


def test_a_prepared_file_is_read_as_the_file_itself_and_made_once(small, tmp_path):
  path, out = write(tmp_path / "sums" / "train.jsonl", rows_of(40)), tmp_path / "prepared"
  folder = prepare(path, out=out, **FIELDS)
  assert folder == str(out / "sums_train" / "1.0.0") and split_sizes(folder) == {"train": 40}
  assert read(folder, small) == read(path, small)  # the order of the rows too
  assert [entry.name for entry in out.iterdir()] == ["sums_train"]
  made = {entry: os.stat(entry).st_mtime_ns for entry in (out / "sums_train" / "1.0.0").iterdir()}
  assert prepare(path, out=out, **FIELDS) == folder
  assert {entry: os.stat(entry).st_mtime_ns for entry in (out / "sums_train" / "1.0.0").iterdir()} == made
  assert "made of other rows or fields" in refusal(path, out, prompt_field="question")
  write(path, rows_of(41))
  assert "made of other rows or fields" in refusal(path, out, **FIELDS)
  assert split_sizes(folder) == {"train": 40}


def test_chat_messages_and_nested_fields_survive(small, tmp_path):
  rows = [
    {
      "prompt": [{"role": "system", "content": "Be brief."}] * (i % 2) + [{"role": "user", "content": f"What is {i}?"}],
      "reward_model": {"ground_truth": i, "style": "rule"},
      "extra": {"hint": f"It is {i}."},
    }
    for i in range(6)
  ]
  fields = {"prompt_field": "prompt", "answer_field": "reward_model.ground_truth"}
  path = write(tmp_path / "math.parquet", rows)
  folder = prepare(path, out=tmp_path, teacher_prompt_field="extra.hint", **fields)
  teacher = {"teacher_field": "extra.hint", "max_teacher": 99, "stop_ids": (2,)}
  assert read(folder, small, **fields, **teacher) == read(path, small, **fields, **teacher)


def test_a_folder_as_on_the_hub_has_its_splits(small, tmp_path):
  hub = tmp_path / "My set (2)"
  for shard in range(2):
    write(hub / "data" / f"train-0000{shard}-of-00002-0a1b.parquet", rows_of(3 * shard + 3, 3 * shard))
  write(hub / "data" / "test-00000-of-00001.parquet", rows_of(2))
  write(hub / "more" / "validation" / "0000.parquet", rows_of(4))
  folder = prepare(hub, out=tmp_path, **FIELDS)
  assert split_sizes(folder) == {"test": 2, "train": 6, "validation": 4}
  assert read(folder, small).texts == tuple(row["question"] for row in rows_of(6))
  assert read(f"{folder}:test", small) == read(hub / "data" / "test-00000-of-00001.parquet", small)
  assert "is prepared already" in refusal(folder, tmp_path, **FIELDS)
  write(hub / "socratic" / "train.jsonl", rows_of(1))
  message = refusal(hub, tmp_path / "other", **FIELDS)
  assert "the split `train` 2 times" in message and "socratic/*.jsonl" in message


def test_the_only_split_needs_no_name(small, tmp_path):
  path = write(tmp_path / "test.jsonl", rows_of(3))
  assert read(prepare(path, out=tmp_path / "out", **FIELDS), small) == read(path, small)


@pytest.mark.parametrize(
  "rows, fields, words",
  [
    ([], FIELDS, "is empty: it has no rows"),
    (
      rows_of(2),
      {"prompt_field": "qestion"},
      "line 1 has no field `qestion` (did you mean `question`?); fields present",
    ),
    (rows_of(2), {"answer_field": "answer"}, "prompt_field"),
    ([*rows_of(2), {"question": 3, "answer": "x"}], FIELDS, "line 3: `question` must be text or a list"),
    ([*rows_of(1), {"question": [{"role": "user", "content": "?"}], "answer": ""}], FIELDS, "is a list, and text in"),
    (
      [{"question": [{"role": "user", "content": "?", "name": "Ada"}], "answer": ""}],
      FIELDS,
      "have name, and a prepared set has role and content",
    ),
  ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, rows, fields, words):
  path = write(tmp_path / "a.jsonl", rows)
  assert words in refusal(path, tmp_path / "out", **fields)
  assert not (tmp_path / "out").exists()


def test_what_is_no_data_set_is_named(tmp_path):
  out = tmp_path / "out"
  assert "has no set `gsm8q` (did you mean `gsm8k`?)" in refusal("gsm8q", out, **FIELDS)
  assert "does not exist" in refusal(tmp_path / "none.jsonl", out, **FIELDS)
  assert "neither .jsonl nor .parquet files" in refusal(tmp_path, out, **FIELDS)
  (tmp_path / "a.csv").write_text("question\n")
  assert "its ending `.csv`" in refusal(tmp_path / "a.csv", out, **FIELDS)
  unknown = refusal("race/hihg", out, **FIELDS)
  assert "`race` has no config `hihg` (did you mean `high`?); known: high, middle" in unknown
  assert "`gsm8k` has no configs: give gsm8k alone" in refusal("gsm8k/main", out, **FIELDS)
  message = refusal("gsm8k", out, prompt_field="qestion")
  assert "(did you mean `question`?); fields present: " in message and "short_answer" in message
  assert not list(tmp_path.rglob("*.array_record*"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_a_builder_that_needs_tensorflow_says_so(tmp_path):
  message = refusal("super_glue/boolq", tmp_path)
  assert "needs tensorflow, which is not here: pip install tensorflow" in message and "extra `tensorflow`" in message


def test_names_are_those_that_tfds_itself_lists():
  """Of the newer sets; the older ones it can only list with TensorFlow."""
  from tensorflow_datasets.core import constants, registered

  known = known_builders()
  listed = registered._get_existing_dataset_packages(constants.DATASETS_TFDS_SRC_DIR)
  assert set(listed) - set(known) == set() and len(listed) > 100
  assert all(known[name][0] == module for name, (_, module) in listed.items())
  assert {"gsm8k", "math_dataset", "race", "wmt14_translate"} <= set(known)


WITHOUT_TENSORFLOW = """
import json, sys
import tensorflow_datasets as tfds
from opd_jax.data import prepare, split_sizes
out, gsm8k, empty = sys.argv[1:]
files = prepare(gsm8k, prompt_field="question", answer_field="answer", out=out)
taken = {"train": f"{gsm8k}/train.jsonl", "test": f"{gsm8k}/test.jsonl"}
tfds.download.DownloadManager.download_and_extract = lambda self, urls: {k: taken.get(k, empty) for k in urls}
named = prepare("gsm8k", prompt_field="question", answer_field="answer", out=f"{out}/named")
assert prepare("gsm8k", out=f"{out}/named") == named
assert "tensorflow" not in sys.modules
print(json.dumps([files, named, split_sizes(files), split_sizes(named)]))
"""


@pytest.fixture(scope="module")
def gsm8k(shared, tmp_path_factory):
  """Prepared twice without TensorFlow: from the files, and by TFDS's own builder with the files for a download."""
  folder = tmp_path_factory.mktemp("gsm8k")
  (folder / "one.jsonl").write_text(json.dumps({"question": "?", "answer": "So it is. #### 1"}) + "\n")
  arguments = [str(folder / "out"), str(shared / "gsm8k"), str(folder / "one.jsonl")]
  done = subprocess.run(
    [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments], capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_gsm8k_is_prepared_whole_from_its_files(gsm8k, shared, trained_on_gsm8k):
  files, _, sizes, _ = gsm8k
  assert sizes == {"test": 1319, "train": 7473}
  for split in sizes:
    ours = read(f"{files}:{split}", trained_on_gsm8k, limit=1000, **FIELDS)
    assert ours == read(shared / f"gsm8k/{split}.jsonl", trained_on_gsm8k, limit=1000, **FIELDS)


def test_gsm8k_is_prepared_by_the_builder_of_tfds(gsm8k, shared, trained_on_gsm8k):
  """Which keeps the rows, but shuffles them once, and has the answer's last line apart."""
  _, named, _, sizes = gsm8k
  assert (sizes["train"], sizes["test"]) == (7473, 1319)
  ours = read(shared / "gsm8k/test.jsonl", trained_on_gsm8k)
  theirs = read(f"{named}:test", trained_on_gsm8k)
  assert sorted(zip(theirs.texts, theirs.answers)) == sorted(zip(ours.texts, ours.answers))
  short = read(f"{named}:test", trained_on_gsm8k, prompt_field="question", answer_field="short_answer")
  assert [answer.split("#### ")[1] for answer in theirs.answers] == list(short.answers)


def test_the_command_says_how_many_rows_and_what_was_wrong(tmp_path):
  path = write(tmp_path / "a.jsonl", rows_of(3))

  def command(*arguments):
    words = [sys.executable, "-m", "opd_jax.prepare", *map(str, arguments), f"--out={tmp_path}/out"]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)

  done = command(path, "--prompt_field=questions")
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2 and line.startswith("error: ") and "did you mean `question`?" in line
  done = command(path, "--prompt_field=question", "--answer_field=answer")
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert line.startswith("a 3 rows; read it with --config.data.path=") and line.endswith("_a/1.0.0")


def test_a_split_cannot_be_called_all(tmp_path):
  path = write(tmp_path / "all.jsonl", rows_of(3))
  with pytest.raises(InputError, match=r"split name `all`.*rename the file"):
    prepare(path, prompt_field="question", out=tmp_path / "out")
