"""The row files survive any kill, and a resumed run counts no step twice."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax.errors import InputError
from opd_jax.telemetry import rows
from opd_jax.telemetry.rows import drop_rows_after, encode_row, read_rows

values = st.one_of(
  st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)
# A trainer's row: nested values too, and text with newlines, quotes and separators inside.
row_bodies = st.dictionaries(st.text(max_size=6), st.one_of(values, st.lists(values, max_size=3)), max_size=4)
files = st.lists(st.tuples(st.integers(0, 6), row_bodies), max_size=8).map(
  lambda pairs: [body | {"step": step} for step, body in sorted(pairs, key=lambda pair: pair[0])]
)


@given(written=files, cut=st.floats(0, 1), resume=st.integers(-1, 7))
def test_a_resume_keeps_exactly_the_complete_rows_up_to_its_step(tmp_path_factory, written, cut, resume):
  path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
  lines = [encode_row(row).encode() for row in written]
  torn = b"".join(lines)[: round(cut * sum(map(len, lines)))]  # killed at any byte
  path.write_bytes(torn)
  expected, end = [], 0
  for row, line in zip(written, lines):
    end += len(line)
    if end - 1 <= len(torn) and row["step"] <= resume:  # nothing but the newline may be missing
      expected.append((row, line))

  assert drop_rows_after(path, resume) == [row for row, _ in expected]
  assert path.read_bytes() == b"".join(line for _, line in expected)
  assert drop_rows_after(path, resume) == read_rows(path)
  assert [other.name for other in path.parent.iterdir()] == ["metrics.jsonl"]


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_comes_back_bit_for_bit(value):
  row = json.loads(encode_row({"step": np.int32(3), "loss": np.float32(value)}))
  assert row["step"] == 3
  assert np.float32(row["loss"]).tobytes() == np.float32(value).tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_null_at_any_depth(value):
  line = encode_row({"step": 1, "loss": value, "by_position": [1.0, {"x": value}]})
  assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "by_position": [1.0, {"x": None}]}


def test_a_file_that_needs_no_cut_is_not_rewritten(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step":2}\n')
  monkeypatch.setattr(rows, "replace_file", lambda *_: pytest.fail("rewritten"))
  assert [row["step"] for row in drop_rows_after(path, 2)] == [1, 2]


def test_a_crash_while_cutting_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  before = b'{"step": 1}\n{"step": 2}\n'
  path.write_bytes(before)

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(rows.os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    drop_rows_after(path, 1)
  assert path.read_bytes() == before


@pytest.mark.parametrize("bad", ["{broken", "[1]", '{"loss": 1}', '{"step": "1"}', '{"step": true}'])
def test_a_foreign_line_is_named_and_nothing_is_touched(tmp_path, bad):
  path = tmp_path / "eval.jsonl"
  content = f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n'
  path.write_text(content)
  with pytest.raises(InputError, match=r"eval\.jsonl line 2 "):
    drop_rows_after(path, 1)
  assert path.read_text() == content


def test_a_missing_file_has_no_rows(tmp_path: Path):
  assert read_rows(tmp_path / "none.jsonl") == []
  assert drop_rows_after(tmp_path / "none.jsonl", 3) == []
  assert not list(tmp_path.iterdir())


def test_a_row_without_a_step_is_a_bug():
  with pytest.raises(TypeError, match="step"):
    encode_row({"loss": 1.0})


@pytest.mark.parametrize(
  "file, line, words",
  [
    ("metrics.jsonl", '{"step": 1, "tokens": Infinity}', "`tokens` is no number"),
    ("metrics.jsonl", '{"step": 1, "loss": 1e999}', "`loss` is no number"),
    ("metrics.jsonl", f'{{"step": 1, "seconds_step": {"9" * 400}}}', "`seconds_step` is no number"),
    ("metrics.jsonl", '{"step": 1, "compiles_new": 5}', "`compiles_new` is not a list of objects"),
    ("metrics.jsonl", '{"step": 1, "loss_by_position": ["a"]}', "`loss_by_position` is not a list of numbers"),
    ("eval.jsonl", '{"step": 1, "temperature": "x"}', "`temperature` is not a number"),
    ("eval.jsonl", '{"step": 1, "model": ["x"]}', "`model` is not text"),
    ("samples.jsonl", '{"step": 1, "kl": ["y"]}', "`kl` is not a list of numbers"),
    ("samples.jsonl", '{"step": 1, "tokens": [null, "x"]}', "`tokens` is not a list of texts"),
  ],
)
def test_a_value_that_no_run_writes_is_named_with_its_line(tmp_path, file, line, words):
  path = tmp_path / file
  path.write_text('{"step": 0}\n' + line + "\n")
  with pytest.raises(InputError, match=f"{file} line 2: {words}"):
    read_rows(path)


def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "metrics.jsonl")
  with pytest.raises(InputError, match="is no file"):
    read_rows(tmp_path / "metrics.jsonl")
