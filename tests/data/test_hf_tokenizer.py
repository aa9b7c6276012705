import functools
import json
import shutil
import subprocess
import sys

import huggingface_hub.constants
import pytest

from opd_jax.data import Framing, check_pair, load_tokenizer, stop_ids
from opd_jax.errors import InputError

IM_START, IM_END = 1, 2  # the ids of <|im_start|> and <|im_end|> in every tokenizer of these tests
QUESTION = "How many eggs are left?"


def all_text(tokenizer, ids):
  return tokenizer.hf.decode(ids, skip_special_tokens=False)


def changed(folder, target, old, new):
  """A copy of a tokenizer folder with one string of tokenizer.json replaced."""
  shutil.copytree(folder, target)
  text = (target / "tokenizer.json").read_text(encoding="utf-8")
  assert text.count(old) >= 1
  (target / "tokenizer.json").write_text(text.replace(old, new), encoding="utf-8")
  return load_tokenizer(target)


def test_text_and_messages_go_through_the_chat_template(small):
  expected = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
  assert all_text(small, small.encode_prompt(QUESTION)) == expected
  messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
  assert all_text(small, small.encode_prompt(messages)) == f"<|im_start|>system\nBe brief.<|im_end|>\n{expected}"


def test_the_template_markers_are_single_special_ids(small):
  ids = small.encode_prompt(QUESTION)
  assert ids[0] == IM_START
  assert ids.count(IM_END) == 1


def test_without_a_template_text_stays_text(small, tmp_path, write_tokenizer):
  bare = load_tokenizer(write_tokenizer(tmp_path, [QUESTION], 290, chat_template=None))
  messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
  for tokenizer, chat in ((bare, True), (small, False)):
    assert all_text(tokenizer, tokenizer.encode_prompt(QUESTION, Framing(chat=chat))) == QUESTION
    assert all_text(tokenizer, tokenizer.encode_prompt(messages, Framing(chat=chat))) == f"Be brief.\n\n{QUESTION}"


def test_special_tokens_of_the_tokenizer_stand_before_text_and_not_before_the_template(tmp_path, write_tokenizer):
  tokenizer = load_tokenizer(write_tokenizer(tmp_path, [QUESTION], 290, bos=True))
  assert all_text(tokenizer, tokenizer.encode_prompt(QUESTION, Framing(chat=False))) == f"<|endoftext|>{QUESTION}"
  assert all_text(tokenizer, tokenizer.encode_prompt(QUESTION)).startswith("<|im_start|>user")


def test_an_answer_is_what_the_template_makes_of_the_assistants_turn(small):
  """Through the id that ends it: what the template writes after that, the model never does."""
  answer = small.encode_answer(QUESTION, "Two.", (IM_END,))
  turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Two."}]
  whole = small.hf.apply_chat_template(turns, tokenize=True, return_dict=False)
  assert all_text(small, answer) == "Two.<|im_end|>"
  assert [*small.encode_prompt(QUESTION), *answer] == whole[: len(whole) - len(small.hf("\n")["input_ids"])]
  assert small.encode_answer(turns[:1], "Two.", (IM_END,)) == answer


def test_an_answer_without_a_template_ends_where_the_model_would_end_it(small, tmp_path, write_tokenizer):
  bos = load_tokenizer(write_tokenizer(tmp_path, [QUESTION], 290, bos=True))
  for tokenizer in (small, bos):
    text = functools.partial(tokenizer.encode_answer, QUESTION, framing=Framing(chat=False))
    assert all_text(tokenizer, text("Two.", (0, IM_END))) == "Two.<|im_end|>"  # the tokenizer's own, no other before it
    assert all_text(tokenizer, text("Two.", (0,))) == "Two.<|endoftext|>"  # where it never ends an answer
    assert all_text(tokenizer, text("Two.<|im_end|> Or three.", (0, IM_END))) == "Two.<|im_end|>"
    assert text("", (IM_END,)) == [IM_END]


def test_a_template_that_opens_a_turn_otherwise_gives_the_bare_answer(tmp_path, write_tokenizer):
  """As templates of reasoning models do: a begun turn has a mark that a finished one has lost."""
  template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<|endoftext|>{% endif %}"
  )
  tokenizer = load_tokenizer(write_tokenizer(tmp_path, [QUESTION], 290, chat_template=template))
  assert all_text(tokenizer, tokenizer.encode_answer(QUESTION, "Two.", (IM_END,))) == "Two.<|im_end|>"


def test_decode_leaves_special_tokens_out_and_text_alone(small):
  text = "a  b , c  é\n"
  assert small.decode([*small.encode_prompt(text, Framing(chat=False)), IM_END]) == text


def test_size_counts_added_tokens(small_folder, small, tmp_path):
  larger = load_tokenizer(small_folder).hf
  larger.add_tokens(["<tool>", "</tool>"])
  larger.save_pretrained(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.size == small.size + 2
  assert loaded.decode([loaded.size - 1]) == "</tool>"


@pytest.mark.parametrize(
  ("generation", "model", "expected"),
  [
    (None, None, (2,)),
    ([7, 5], 5, (2, 5, 7)),
    (0, None, (0, 2)),
    (None, [2, 9], (2, 9)),
  ],
)
def test_stop_ids_are_the_union(small_folder, small, tmp_path, generation, model, expected):
  folder = tmp_path / "model"
  shutil.copytree(small_folder, folder)
  for name, ids in (("generation_config.json", generation), ("config.json", model)):
    if ids is not None:
      (folder / name).write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
  assert stop_ids(folder, small) == expected


@pytest.mark.parametrize("content", ['{"eos_token_id": "</s>"}', '{"eos_token_id": [true]}', "[1, 2]", "{"])
def test_stop_ids_refuses_what_is_no_id(small, tmp_path, content):
  (tmp_path / "config.json").write_text(content, encoding="utf-8")
  with pytest.raises(InputError, match=r"config\.json"):
    stop_ids(tmp_path, small)


def test_a_tokenizer_fits_itself(small, small_folder):
  check_pair(small, load_tokenizer(small_folder))


def test_the_first_ids_that_differ_are_named(small_folder, small, tmp_path):
  other = changed(small_folder, tmp_path / "other", '"<|im_start|>"', '"<|turn|>"')
  with pytest.raises(InputError, match=r"differ in 1 ids: id 1: '<\|im_start\|>' / '<\|turn\|>'") as raised:
    check_pair(small, other)
  assert "\n" not in str(raised.value)
  assert "sizes" not in str(raised.value)
  with pytest.raises(InputError, match=r"student and reference.*choose a reference"):
    check_pair(small, other, "reference")


def test_different_sizes_are_named(small_folder, small, tmp_path):
  larger = load_tokenizer(small_folder).hf
  larger.add_tokens(["<tool>"])
  larger.save_pretrained(tmp_path)
  teacher = load_tokenizer(tmp_path)
  with pytest.raises(InputError, match=rf"\(sizes {small.size} / {small.size + 1}\): id {small.size}: none / '<tool>'"):
    check_pair(small, teacher)


def test_missing_and_damaged_folders_are_one_line(small_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  (tmp_path / "empty").mkdir()
  for name, text in (("cut", '{"version": "1.0", "model"'), ("strange", '{"a": 1}')):
    shutil.copytree(small_folder, tmp_path / name)
    (tmp_path / name / "tokenizer.json").write_text(text, encoding="utf-8")
  for path, expected in (
    (tmp_path / "missing", "no such model folder"),
    ("./missing", "no such model folder"),
    ("missing", "no such model folder"),
    ("nobody/nothing@v1", "the Hugging Face hub does not give it"),
    (tmp_path / "empty", "no tokenizer in"),
    (tmp_path / "cut", "cannot read the tokenizer"),
    (tmp_path / "strange", "cannot read the tokenizer"),
  ):
    with pytest.raises(InputError, match=expected) as raised:
      load_tokenizer(path)
    assert "\n" not in str(raised.value)


def test_a_template_that_refuses_is_named(tmp_path, write_tokenizer):
  template = "{{ raise_exception('roles must alternate') }}"
  tokenizer = load_tokenizer(write_tokenizer(tmp_path, [QUESTION], 290, chat_template=template))
  with pytest.raises(InputError, match=r"chat template of .* roles must alternate"):
    tokenizer.encode_prompt(QUESTION)


def test_code_of_a_checkpoint_is_never_run(small_folder, tmp_path):
  folder = tmp_path / "hostile"
  shutil.copytree(small_folder, folder)
  config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
  config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
  (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
  (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
  try:
    load_tokenizer(folder)
  except InputError:
    pass
  assert not (tmp_path / "ran").exists()


def test_loading_is_silent_and_imports_no_torch(small_folder):
  """As on a machine without torch: transformers would advise to install it."""
  program = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
from opd_jax.data import load_tokenizer
load_tokenizer({str(small_folder)!r}).encode_prompt("hello")
assert not {{"torch", "tensorflow"}} & set(sys.modules)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ids_beyond_the_vocabulary_are_refused(tmp_path, write_tokenizer):
  folder = write_tokenizer(tmp_path, [QUESTION], 290, bos=True)
  stored = json.loads((folder / "tokenizer.json").read_text())
  stored["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [99999]
  (folder / "tokenizer.json").write_text(json.dumps(stored))
  with pytest.raises(InputError, match=r"makes the id 99999, and its vocabulary has \d+"):
    load_tokenizer(folder).encode_prompt(QUESTION, Framing(chat=False))


@pytest.mark.parametrize(
  "file, changes",
  [
    ("tokenizer_config.json", {"model_max_length": "abc"}),
    # Its search gives up, which is a panic in Rust.
    (
      "tokenizer.json",
      {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((a)+)+$"}, "behavior": "Isolated", "invert": False}},
    ),
  ],
)
def test_what_a_tokenizers_files_raise_is_one_line(tmp_path, write_tokenizer, file, changes):
  folder = write_tokenizer(tmp_path, [QUESTION], 290)
  stored = json.loads((folder / file).read_text())
  (folder / file).write_text(json.dumps(stored | changes))
  with pytest.raises(InputError, match=r"the (tokenizer|chat template) of .* does not take this"):
    load_tokenizer(folder).encode_prompt("a" * 60 + "!", Framing(chat=False))
