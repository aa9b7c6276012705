import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.data import Framing, pad_left, read_prompts
from opd_jax.errors import InputError

MESSAGES = [{"role": "user", "content": "What is the sum of two and three?"}]


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


def read(path, tokenizer, prompt_field="question", answer_field="answer", max_prompt=100, **rest):
  return read_prompts(
    path, prompt_field=prompt_field, answer_field=answer_field, tokenizer=tokenizer, max_prompt=max_prompt, **rest
  )


def refusal(path, tokenizer, **rest):
  with pytest.raises(InputError) as raised:
    read(path, tokenizer, **rest)
  assert "\n" not in str(raised.value)
  return str(raised.value)


def test_jsonl_rows_become_ids_answers_and_texts(small, tmp_path):
  rows = [{"question": "How many?", "answer": "3"}, {"question": MESSAGES, "answer": 2.5}]
  prompts = read(write_jsonl(tmp_path / "a.jsonl", rows), small)
  assert len(prompts) == 2
  assert [list(ids) for ids in prompts.token_ids] == [small.encode_prompt("How many?"), small.encode_prompt(MESSAGES)]
  assert prompts.answers == ("3", "2.5")
  assert prompts.texts == ("How many?", "What is the sum of two and three?")
  assert prompts.dropped_long == 0


def test_answers_as_ids_and_prompts_for_the_teacher(small, tmp_path):
  """A row stays where both of its prompts fit; what belongs together stays together."""
  hints = ["How many, of two?", "How many eggs are left of the two and three and four and five?", "How many are two?"]
  rows = [{"question": "How many?", "answer": i, "hint": hint} for i, hint in enumerate(hints)]
  path = write_jsonl(tmp_path / "a.jsonl", rows)
  lengths = [len(small.encode_prompt(hint)) for hint in hints]
  longest = max(lengths[0], lengths[2])
  assert longest < lengths[1]
  prompts = read(path, small, stop_ids=(2,), teacher_field="hint", max_teacher=longest)
  assert prompts.dropped_long == 1 and prompts.answers == ("0", "2")
  assert [list(ids) for ids in prompts.teacher_ids] == [small.encode_prompt(hints[i]) for i in (0, 2)]
  assert [small.hf.decode(ids) for ids in prompts.answer_ids] == ["0<|im_end|>", "2<|im_end|>"]
  assert len(prompts.token_ids) == 2 and read(path, small).answer_ids == read(path, small).teacher_ids == ()
  expected = (
    "config.rollout.max_prompt allows 100, "
    f"the teacher's has {min(lengths)} tokens and config.rollout.max_teacher_prompt allows 3"
  )
  assert expected in refusal(path, small, teacher_field="hint", max_teacher=3)
  assert "hint" in refusal(write_jsonl(tmp_path / "b.jsonl", rows[:1]), small, teacher_field="hnt", max_teacher=99)


def test_parquet_gives_what_jsonl_gives(small, tmp_path):
  rows = [{"prompt": MESSAGES, "reward_model": {"ground_truth": str(i)}, "other": i} for i in range(5)]
  jsonl = write_jsonl(tmp_path / "a.jsonl", rows)
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  fields = {"prompt_field": "prompt", "answer_field": "reward_model.ground_truth"}
  assert read(tmp_path / "a.parquet", small, **fields) == read(jsonl, small, **fields)


def test_a_prepared_tfds_folder_is_read_without_tensorflow(small_folder, small, tmp_path):
  """In a process of its own: neither preparing nor reading may import TensorFlow."""
  rows = [{"question": f"How many are {i}?", "answer": str(i)} for i in range(7)]
  program = f"""
import sys
import tensorflow_datasets as tfds
from opd_jax.data import load_tokenizer, read_prompts
rows = {rows!r}
class Sums(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  def _info(self):
    features = {{"question": tfds.features.Text(), "answer": tfds.features.Text()}}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
  def _split_generators(self, manager):
    return {{"train": self._generate_examples(rows[:5]), "test": self._generate_examples(rows[5:])}}
  def _generate_examples(self, rows):
    yield from enumerate(rows)
builder = Sums(data_dir={str(tmp_path)!r}, file_format="array_record")
builder.download_and_prepare()
tokenizer = load_tokenizer({str(small_folder)!r})
for path in (builder.data_path, f"{{builder.data_path}}:test"):
  prompts = read_prompts(path, prompt_field="question", answer_field="answer", tokenizer=tokenizer, max_prompt=99)
  print(sorted(zip(prompts.texts, prompts.answers)))
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
  assert done.returncode == 0, done.stderr
  train, test = done.stdout.splitlines()[-2:]
  assert train == repr([(row["question"], row["answer"]) for row in rows[:5]])
  assert test == repr([(row["question"], row["answer"]) for row in rows[5:]])
  folder = tmp_path / "sums" / "1.0.0"
  assert "has no split `tset` (did you mean `test`?); its splits: " in refusal(f"{folder}:tset", small)


def test_long_prompts_are_dropped_and_counted(small, tmp_path):
  rows = [{"question": "How many eggs are left? " * n, "answer": str(n)} for n in (1, 9, 2, 8)]
  width = len(small.encode_prompt(rows[2]["question"]))
  prompts = read(write_jsonl(tmp_path / "a.jsonl", rows), small, max_prompt=width)
  assert (prompts.answers, prompts.dropped_long) == (("1", "2"), 2)
  assert max(map(len, prompts.token_ids)) == width


def test_limit_and_no_answers(small, tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", [{"question": f"How many {n}?"} for n in range(6)])
  prompts = read(path, small, answer_field="", limit=4)
  assert prompts.texts == tuple(f"How many {n}?" for n in range(4))
  assert prompts.answers == ("",) * 4


def test_blank_lines_and_a_byte_order_mark_are_nothing(small, tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"question": "How?", "answer": "1"}\r\n\r\n{"question": "What?", "answer": "2"}')
  assert read(path, small).answers == ("1", "2")


@pytest.mark.parametrize(
  ("content", "expected"),
  [
    (b"", "is empty"),
    (b"\n \n", "is empty"),
    (b'{"question": "a", "answer": "b"}\n{"question": \n', "a.jsonl, line 2 is not JSON"),
    (b'{"question": "a", "answer": "b"}\n\n[1]\n', "a.jsonl, line 3 is a list"),
    (b"[" * 100_000, "line 1 is not JSON"),
    (b'{"question": "a", "answer": "b"}\n{"question": "\xff", "answer": "b"}\n', "line 2 is not UTF-8"),
    ('{"question": "a", "answer": "b"}\n'.encode("utf-16"), "line 1 is not UTF-8"),
    (b'{"questions": "a", "answer": "b"}', "(did you mean `questions`?); fields present: questions, answer"),
    (b'{"question": "a", "answer": {"value": 1}}', "`answer` must be text or a number, not an object"),
    (b'{"question": "a", "answer": null}', "line 1: `answer` must be text or a number, not null"),
    (b'{"question": "a", "answer": true}', "not true or false"),
    (b'{"question": "a", "answer": "b"}\n{"question": 3, "answer": "b"}', "line 2: `question` must be text or a list"),
    (b'{"question": [], "answer": "b"}', "not a list"),
    (b'{"question": [{"role": "user"}], "answer": "b"}', "not a list"),
    (b'{"question": [{"role": "user", "content": [1]}], "answer": "b"}', "not a list"),
    (b'{"question": "\\ud800", "answer": "b"}', "line 1: `question` holds a broken character"),
  ],
)
def test_bad_jsonl_is_named_with_its_line(small, tmp_path, content, expected):
  (tmp_path / "a.jsonl").write_bytes(content)
  assert expected in refusal(tmp_path / "a.jsonl", small)


def test_bad_files_are_named(small, tmp_path):
  assert "does not exist" in refusal(tmp_path / "none.jsonl", small)
  (tmp_path / "a.csv").write_text("question,answer\n")
  assert "its ending `.csv`; give a .jsonl file, a .parquet" in refusal(tmp_path / "a.csv", small)
  (tmp_path / "a.parquet").write_bytes(b"PAR1 no PAR1")
  assert "as parquet" in refusal(tmp_path / "a.parquet", small)
  assert "tensorflow-datasets cannot read it" in refusal(tmp_path, small)


def test_a_missing_parquet_field_names_those_present(small, tmp_path):
  rows = [{"prompt": "How?", "reward_model": {"ground_truth": "1", "style": "rule"}}]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  message = refusal(tmp_path / "a.parquet", small, prompt_field="prompt", answer_field="reward_model.ground_trut")
  assert "(did you mean `reward_model.ground_truth`?)" in message
  message = refusal(tmp_path / "a.parquet", small, prompt_field="promt", answer_field="")
  assert "fields present: prompt, reward_model.ground_truth, reward_model.style" in message


def test_empty_prompts_and_prompts_that_are_all_too_long(small, tmp_path):
  path = write_jsonl(tmp_path / "a.jsonl", [{"question": "How many?", "answer": "1"}] * 2)
  shortest = len(small.encode_prompt("How many?"))
  expected = f"the shortest has {shortest} tokens and config.rollout.max_prompt allows {shortest - 1}"
  assert expected in refusal(path, small, max_prompt=shortest - 1)
  path = write_jsonl(tmp_path / "b.jsonl", [{"question": "", "answer": "1"}])
  assert "line 1: the prompt in `question` is empty" in refusal(path, small, framing=Framing(chat=False))


def test_gsm8k_is_read_whole(shared, trained_on_gsm8k):
  assert trained_on_gsm8k.size == 8192
  prompts = read(shared / "gsm8k/test.jsonl", trained_on_gsm8k, max_prompt=256)
  assert len(prompts) + prompts.dropped_long == 1319
  assert prompts.dropped_long < 5
  assert prompts.answers[0].endswith("#### 18")
  first = json.loads((shared / "gsm8k/test.jsonl").open(encoding="utf-8").readline())["question"]
  text = trained_on_gsm8k.hf.decode(prompts.token_ids[0])
  assert text == f"<|im_start|>user\n{first}<|im_end|>\n<|im_start|>assistant\n"


def test_dapo_rows_are_read_from_their_messages(shared, trained_on_gsm8k):
  fields = {"prompt_field": "prompt", "answer_field": "reward_model.ground_truth"}
  prompts = read(shared / "dapo-math-17k/train.parquet", trained_on_gsm8k, max_prompt=256, limit=500, **fields)
  table = pq.read_table(shared / "dapo-math-17k/train.parquet").slice(0, 500 + prompts.dropped_long).to_pylist()
  kept = [row for row in table if len(trained_on_gsm8k.encode_prompt(row["prompt"])) <= 256]
  assert prompts.answers == tuple(row["reward_model"]["ground_truth"] for row in kept)
  assert prompts.texts == tuple(row["prompt"][0]["content"] for row in kept)
  assert 0 < prompts.dropped_long < 500


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=6), st.integers(0, 4))
def test_pad_left_keeps_every_token_at_the_right_edge(token_lists, spare):
  width = max((len(ids) for ids in token_lists), default=0) + spare
  tokens_bp, mask_bp = pad_left(token_lists, width)
  assert tokens_bp.shape == mask_bp.shape == (len(token_lists), width)
  assert (tokens_bp.dtype, mask_bp.dtype) == (np.int32, np.bool_)
  for ids, tokens_p, mask_p in zip(token_lists, tokens_bp, mask_bp):
    assert mask_p.tolist() == [False] * (width - len(ids)) + [True] * len(ids)
    assert tokens_p.tolist() == [0] * (width - len(ids)) + ids


def test_pad_left_refuses_what_does_not_fit():
  with pytest.raises(ValueError, match="3 tokens does not fit into 2"):
    pad_left([[1], [1, 2, 3]], 2)


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_no_answer(small, tmp_path, answer):
  path = tmp_path / "prompts.jsonl"
  path.write_text(f'{{"question": "How many?", "answer": {answer}}}\n')
  with pytest.raises(InputError, match=r"line 1: `answer` is .*drop the row"):
    read(path, small)


def test_a_name_may_have_a_dot_in_it(small, tmp_path):
  rows = [{"a.b": "How many?", "a": {"b": "What?"}, "answer": "3"}]
  jsonl = tmp_path / "prompts.jsonl"
  jsonl.write_text(json.dumps(rows[0]))
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
  for path in (jsonl, tmp_path / "prompts.parquet"):
    assert read(path, small, prompt_field="a.b").texts == ("How many?",)


def test_lines_that_end_with_a_carriage_return_alone_are_named(small, tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_bytes(b'{"question": "a", "answer": "1"}\r{"question": "b", "answer": "2"}\r')
  with pytest.raises(InputError, match="save them with newlines"):
    read(path, small)
