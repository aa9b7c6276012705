"""A seeded part of `benchmarks.fuzz`, what must hold of any bytes and any JSON, and what the fuzzer found once."""

import json
import os
import random
import string
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing import harness
from benchmarks.fuzzing.case import CONFIG, make_base
from benchmarks.fuzzing.harness import ACCEPTED, KINDS, REFUSED
from benchmarks.fuzzing.mutate import change_json
from opd_jax import horizon, models
from opd_jax.command_line import load_config
from opd_jax.data import load_tokenizer, rows, tokenizer
from opd_jax.errors import InputError
from opd_jax.models.tensors import find_tensors

SEED, EACH = 8, 6

seeded = settings(max_examples=100, derandomize=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"endless template", "TFDS"}))
def test_bad_input_is_refused_in_one_line_and_touches_nothing(base, tmp_path, kind):
  """`python -m benchmarks.fuzz` gives it more, folders of tensorflow-datasets too, and to real processes."""
  said = set()
  for number in range(EACH):
    folder = tmp_path / str(number)
    folder.mkdir()
    case = harness.make_case(kind, SEED, number, folder, base)
    outcome = harness.run_here(case, folder, base)
    assert outcome.what in ((REFUSED,) if case.bad else (REFUSED, ACCEPTED)), (case.name, outcome.said)
    said |= {outcome.what}
  assert REFUSED in said


@seeded
@given(st.text())
@example("\x1b[2J\x07 \u202e \ud800 \x85 \u2028 a\r\nb")
@example("x" * 10**6)
def test_a_message_is_one_line_of_bounded_length_that_a_terminal_can_show(text):
  line = str(InputError(text))
  assert line.isprintable() and len(line) < 25_000 and line.strip() == line
  if text.isascii() and text.isprintable() and len(text) < 2000:
    assert line == " ".join(text.split())


@seeded
@given(st.integers(0, 2**32))
def test_any_config_json_is_an_architecture_or_one_line(base_config, seed):
  changed = change_json(random.Random(seed), base_config)
  try:
    architecture = models.Architecture.from_config(changed if isinstance(changed, dict) else {}, "config.json")
  except InputError:
    return
  assert architecture.heads % architecture.kv_heads == 0 and architecture.layers <= 4096


@pytest.fixture(scope="module")
def base_config():
  fields = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
  rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
  fields |= {"model_type": "qwen3", "intermediate_size": 24, "head_dim": 8, "rope_theta": 1e4, "rope_scaling": rope}
  fields |= {"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": True, "layer_types": ["full_attention"]}
  return fields | {"eos_token_id": [1, 2], "rms_norm_eps": 1e-6, "max_position_embeddings": 128}


@seeded
@given(
  st.lists(st.binary(max_size=40) | st.from_regex(rb'\{"prompt": ?[\[\]{}"0-9,\\u ]*\}?', fullmatch=True), max_size=4)
)
@example([b'{"prompt": ' + b"7" * 5000 + b"}"])
@example([b"[" * 100_000])
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, lines):
  path = tmp_path_factory.getbasetemp() / "any.jsonl"
  path.write_bytes(b"\n".join(lines))
  try:
    for place, row in rows.read_rows(path, ["prompt"]):
      rows.look_up(row, "prompt", place)
  except InputError:
    pass


# What a header of safetensors may say of a tensor; the file has 64 bytes of numbers.
ENTRY = st.fixed_dictionaries(
  {},
  optional={
    "dtype": st.sampled_from(["F32", "BF16", "F16", "F64", "I8", "F128", "", None, 3]),
    "shape": st.lists(st.integers(-2, 20) | st.just(2**62), max_size=3) | st.none() | st.text(max_size=3),
    "data_offsets": st.lists(st.integers(-1, 70) | st.just(2**63), max_size=3) | st.none(),
    "more": st.none(),
  },
)


@seeded
@given(
  st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "", "\x00"]), ENTRY | st.none() | st.integers(), max_size=3
  ),
  st.integers(-2, 2) | st.just(2**60),
)
def test_any_header_is_tensors_within_the_file_or_one_line(tmp_path_factory, header, more):
  folder = tmp_path_factory.getbasetemp()
  text = json.dumps(header).encode()
  (folder / "model.safetensors").write_bytes(struct.pack("<Q", max(0, len(text) + more)) + text + bytes(64))
  try:
    tensors = find_tensors(folder)
  except InputError:
    return
  for key in tensors.keys:
    window = tensors.read(key, (slice(None),) * len(header[key]["shape"]))
    assert window.nbytes <= 64


# Each of these was a traceback, a hang or an allocation without end.
@pytest.mark.parametrize(
  "override, word",
  [
    ("horizon.buckets=8,²", "horizon.buckets"),
    ("horizon.buckets=" + "1" * 5000, "horizon.buckets"),
    ("data.mixture=" + "(" * 5000, "data.mixture"),
    ("optimizer.warmup_steps=" + "1" + "0" * 20, "warmup_steps"),
    ("optimizer.eps=1" + "0" * 400, "eps"),
    ("rollout.max_prompt=1000000000000", "max_prompt"),
    ("rollout.prompts_per_step=1000000000000", "prompts_per_step"),
    ("eval.batch=1000000000000", "eval.batch"),
  ],
)
def test_a_number_without_end_is_refused(tmp_path, override, word):
  (tmp_path / "config.py").write_text(CONFIG.format(base=tmp_path))
  with pytest.raises(InputError, match=word):
    load_config(str(tmp_path / "config.py"), [f"--config.{override}"])


def test_a_window_is_no_longer_than_the_longest_response(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG.format(base=tmp_path))
  flags = ["--config.horizon.kind=change_point", "--config.horizon.max=16", "--config.horizon.window"]
  assert load_config(str(tmp_path / "config.py"), [*flags[:2], f"{flags[2]}=16"]).horizon.window == 16
  with pytest.raises(InputError, match=r"horizon\.window is 17: it must be at most horizon\.max"):
    load_config(str(tmp_path / "config.py"), [*flags[:2], f"{flags[2]}=17"])


def test_a_config_file_is_read_anew_and_leaves_nothing_beside_it(tmp_path):
  path = tmp_path / "config.py"
  for steps in (3, 4):  # of one length, and mostly of one second
    path.write_text(CONFIG.format(base=tmp_path).replace("c.steps = 2", f"c.steps = {steps}"))
    assert load_config(str(path)).steps == steps
  assert [each.name for each in tmp_path.iterdir()] == ["config.py"]


def test_steep_ladders_and_small_shares_are_still_horizons():
  assert horizon.ladder_rule("geometric(1e308)")(128) == (16, 128)
  assert horizon.truncated(128, 1e-300)(0) == 1


def test_pipes_and_names_that_no_system_has_are_no_data_file(tmp_path):
  os.mkfifo(tmp_path / "prompts.jsonl")  # opened, it would be waited for
  for path, words in (
    (tmp_path / "prompts.jsonl", "is a pipe or a device"),
    ("x" * 5000 + ".jsonl", "does not exist"),
    ("~nobody_of_this_name/a.jsonl", "does not exist"),
  ):
    with pytest.raises(InputError, match=words):
      rows.locate(path)


def test_a_template_that_does_not_end_is_left(base, tmp_path, monkeypatch):
  """With a shorter patience, and a template that ends some time after it."""
  for file in (base / "student").glob("*token*"):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / "chat_template.jinja").write_text(
    "{% for i in range(300) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
  )
  assert load_tokenizer(tmp_path).hf.chat_template
  monkeypatch.setattr(tokenizer, "_TEMPLATE_SECONDS", 0.001)
  with pytest.raises(InputError, match="does not end within"):
    load_tokenizer(tmp_path)


def test_only_names_of_bounded_length_and_number_are_compared():
  """A row may have any number of fields: the nearest is looked for among some of them."""
  many = {"".join(random.Random(i).choices(string.ascii_letters, k=30)): i for i in range(20_000)}
  with pytest.raises(InputError, match="has no field `promt`"):
    rows.look_up(many, "promt", "line 1")
  with pytest.raises(InputError, match="has no field"):
    rows.look_up({"a": 1}, "x" * 10**6, "line 1")


def test_a_pickle_is_never_read(base, tmp_path):
  """The marker that reading one would leave."""
  for number in range(40):
    folder = tmp_path / str(number)
    folder.mkdir()
    case = harness.make_case("safetensors", SEED, number, folder, base)
    if "pickle" in case.name:
      assert harness.run_here(case, folder, base).what == REFUSED and not (folder / "ran").exists()
      return
  raise AssertionError("no pickle among them")
