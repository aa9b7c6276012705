"""What a run makes of its prompt files before the first step: mixtures, what stands around a prompt, and the order."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.command_line import load_config
from opd_jax.config import Data
from opd_jax.data import Framing, PromptStream, list_parts, load_tokenizer, read_mixture, read_prompts
from opd_jax.distributed import make_mesh, place_rows
from opd_jax.errors import InputError
from opd_jax.training import open_run

THINKING = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{% if enable_thinking is defined and enable_thinking is false %}no thoughts\n{% endif %}{% endif %}"
)
QUESTION = "How many eggs are left?"

# Grain's shuffle costs as much for an epoch of one prompt as for one of thousands: few examples, not the smallest sets.
counts = st.lists(st.integers(40, 400), min_size=1, max_size=4)
seeds = st.integers(0, 2**31 - 1)


def weights_of(counts, seed):
  return [0.2 + (seed >> i) % 7 for i in range(len(counts))]


@settings(max_examples=15)
@given(counts, seeds, st.integers(0, 10_000), st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_the_order_is_one_stream_however_it_is_cut(counts, seed, position, takes):
  stream, pieces, at = PromptStream(counts, weights_of(counts, seed), seed), [], position
  for take in takes:
    pieces.append(stream.take(at, take))
    at += take
  whole = PromptStream(counts, weights_of(counts, seed), seed).take(position, sum(takes))
  assert np.array_equal(np.concatenate(pieces), whole)
  assert (whole.shape, whole.dtype) == ((sum(takes),), np.int64)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), seeds)
def test_every_epoch_of_a_part_takes_its_prompts_once(counts, seed):
  taken = PromptStream(counts, weights_of(counts, seed), seed).take(0, 3 * sum(counts))
  for first, count in zip(np.cumsum([0, *counts]), counts):
    own = taken[(taken >= first) & (taken < first + count)]
    whole_epochs = min(3, len(own) // count)
    for epoch in own[: whole_epochs * count].reshape(whole_epochs, count):
      assert sorted(epoch) == list(range(first, first + count))


@settings(max_examples=6)
@given(counts, seeds, st.integers(0, 200), st.integers(1, 60))
def test_an_iterator_of_grains_goes_on_in_the_middle_of_an_epoch(counts, seed, position, count):
  """Its state, which is the position that a checkpoint holds, is all that another process needs."""
  weights = weights_of(counts, seed)
  before = iter(PromptStream(counts, weights, seed).dataset)
  for _ in range(position):
    next(before)
  assert before.get_state() == {"next_index": position}
  after = iter(PromptStream(counts, weights, seed).dataset)
  after.set_state({"next_index": position})
  assert [next(after) for _ in range(count)] == PromptStream(counts, weights, seed).take(position, count).tolist()


@settings(max_examples=15)
@given(st.lists(st.floats(0.05, 20), min_size=2, max_size=5), seeds, st.integers(0, 5000))
def test_parts_are_taken_by_their_weights_in_every_stretch(weights, seed, position):
  taken = PromptStream([800] * len(weights), weights, seed).take(position, 1000) // 800
  shares = np.bincount(taken, minlength=len(weights)) / 1000
  # To 1 %, what Grain rounds weights to, and to the prompts at both ends of the stretch.
  np.testing.assert_allclose(shares, np.array(weights) / sum(weights), rtol=0.02, atol=0.001 * (len(weights) + 1))


def test_epochs_seeds_and_parts_differ():
  stream, other = PromptStream([1000, 1000], [1, 1], 7), PromptStream([1000, 1000], [1, 1], 8)
  orders = []
  for each in (stream, other):
    taken = each.take(0, 4000)
    orders += [taken[taken < 1000][:1000], taken[taken < 1000][1000:], taken[taken >= 1000][:1000] - 1000]
  orders.append(np.arange(1000))
  for i, first in enumerate(orders):
    for second in orders[:i]:
      assert np.sum(first == second) < 12  # of two independent permutations, one place in 1000 agrees on average


def test_the_order_is_the_same_on_every_machine():
  assert PromptStream([8], [1.0], 3).take(5, 8).tolist() == [5, 6, 7, 5, 7, 4, 1, 2]
  assert PromptStream([3, 2], [2.0, 1.0], 3).take(0, 9).tolist() == [0, 2, 3, 1, 1, 4, 0, 2, 3]


def test_the_rows_of_all_hosts_are_every_prompt_of_an_epoch_once():
  """Four hosts of two devices, which hold the same rows, as under tensor parallelism."""
  mesh, stream = make_mesh((2, 2, 2), jax.devices()), PromptStream([96], [1.0], 5)
  hosts = [set() for _ in range(4)]
  for step in range(12):
    placed = place_rows(mesh, stream.take(8 * step, 8))
    for shard in placed.addressable_shards:
      hosts[int(np.argwhere(mesh.devices.ravel() == shard.device)[0, 0]) // 2].update(np.asarray(shard.data).tolist())
  assert [len(prompts) for prompts in hosts] == [24] * 4
  assert set().union(*hosts) == set(range(96))


def test_parts_say_what_differs_from_the_rest():
  data = Data(
    mixture=(
      "0.7 * a b.jsonl; prompt_field=question; suffix=\nThink; it helps=",
      "c.parquet;limit = 5 ;system=",
    ),
    answer_field="answer",
    system="Be brief.",
    limit=9,
  )
  with pytest.raises(InputError, match="has the option 'it helps'; known: prompt_field, answer_field"):
    list_parts(data)
  first, second = list_parts(dataclasses.replace(data, mixture=("0.7 * a b.jsonl; suffix=\nThink", data.mixture[1])))
  assert (first.path, first.weight, first.limit, first.framing) == (
    "a b.jsonl",
    0.7,
    9,
    Framing(True, "Be brief.", "\nThink"),
  )
  assert (second.path, second.weight, second.limit, second.framing) == ("c.parquet", 1.0, 5, Framing())
  assert first.answer_field == second.answer_field == "answer" and first.prompt_field == "prompt"
  (alone,) = list_parts(Data(path="0.7 * a.jsonl"))
  assert alone.path == "0.7 * a.jsonl"


@pytest.mark.parametrize(
  "part, words",
  [
    (" ", "write WEIGHT"),
    ("0.5 * ", "write WEIGHT"),
    ("0 * a.jsonl", "a weight from 1e-09"),
    ("nan * a.jsonl", "a weight from 1e-09"),
    ("much * a.jsonl", "a weight from 1e-09"),
    ("a.jsonl; promt_field=x", "did you mean `prompt_field`"),
    ("a.jsonl; limit=-1", "limit of a.jsonl is '-1'"),
    ("a.jsonl; answer_field=x", "config.data.answer_field is '': give both or neither"),
    ("a.jsonl; prompt_field=", "config.data.prompt_field is 'prompt': give both or neither"),
  ],
)
def test_a_part_that_names_no_file_is_refused(part, words):
  with pytest.raises(InputError, match=words.replace("(", r"\(")):
    list_parts(Data(mixture=(part,)))


@pytest.fixture
def mixed(tmp_path):
  """Two files of different forms, and the parts of a mixture of them."""
  texts = [{"question": f"How many are {i}?", "answer": i} for i in range(5)]
  messages = [{"prompt": [{"role": "user", "content": f"What is {i}?"}], "answer": str(i)} for i in range(3)]
  (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
  pq.write_table(pa.Table.from_pylist(messages), tmp_path / "b.parquet")
  mixture = (f"2 * {tmp_path}/a.jsonl; prompt_field=question; suffix= Think.", f"{tmp_path}/b.parquet; limit=2")
  return tmp_path, list_parts(Data(mixture=mixture, answer_field="answer"))


def test_a_mixture_is_its_parts_one_after_the_other(small, mixed):
  folder, parts = mixed
  width = len(small.encode_prompt("How many are 2?", Framing(suffix=" Think.")))
  read = {"answer_field": "answer", "tokenizer": small, "max_prompt": width, "stop_ids": (2,)}
  first = read_prompts(folder / "a.jsonl", prompt_field="question", framing=Framing(suffix=" Think."), **read)
  second = read_prompts(folder / "b.parquet", prompt_field="prompt", limit=2, **read)
  del read["answer_field"]
  prompts, counts = read_mixture(parts, **read)
  assert counts == (len(first), 2) and len(prompts) == sum(counts)
  for name in ("token_ids", "answers", "texts", "answer_ids"):
    assert getattr(prompts, name) == getattr(first, name) + getattr(second, name)
  assert prompts.dropped_long == first.dropped_long + second.dropped_long and prompts.teacher_ids == ()
  assert prompts.texts[0] == "How many are 0?"  # as the row has it, for people and graders
  assert small.hf.decode(prompts.token_ids[0]).endswith("How many are 0? Think.<|im_end|>\n<|im_start|>assistant\n")


def test_a_part_without_rows_or_without_the_field_is_named(small, mixed):
  folder, (first, second) = mixed
  (folder / "a.jsonl").write_text("")
  with pytest.raises(InputError, match=r"a\.jsonl is empty: it has no rows"):
    read_mixture([first, second], tokenizer=small, max_prompt=99)
  with pytest.raises(InputError, match=r"b\.parquet, row 1 has no field `promt` \(did you mean `prompt`\?\)"):
    read_mixture([dataclasses.replace(second, prompt_field="promt")], tokenizer=small, max_prompt=99)


def test_what_stands_around_a_prompt_is_what_the_template_makes_of_the_messages(small):
  framing = Framing(system="Be brief.", suffix="\nThink.")
  system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{QUESTION}\nThink."}

  def rendered(*messages):
    return small.hf.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)

  assert small.encode_prompt(QUESTION, framing) == rendered(system, user)
  assert small.encode_prompt([{"role": "user", "content": QUESTION}], framing) == rendered(system, user)
  own = {"role": "system", "content": "Be long."}
  assert small.encode_prompt([own, {"role": "user", "content": QUESTION}], framing) == rendered(own, user)
  assert small.encode_prompt(QUESTION, Framing(suffix="\nThink.")) == rendered(user)
  plain = small.encode_prompt(QUESTION, dataclasses.replace(framing, chat=False))
  assert small.hf.decode(plain) == f"Be brief.\n\n{QUESTION}\nThink."
  whole = small.hf.apply_chat_template(
    [system, user, {"role": "assistant", "content": "Two."}], tokenize=True, return_dict=False
  )
  answer = small.encode_answer(QUESTION, "Two.", (2,), framing)
  assert whole[: len(rendered(system, user)) + len(answer)] == [*rendered(system, user), *answer]


@pytest.fixture
def thinking_folder(small_folder, tmp_path):
  hf = load_tokenizer(small_folder).hf
  hf.chat_template = THINKING
  hf.save_pretrained(tmp_path / "thinking")
  return tmp_path / "thinking"


def test_the_thinking_switch_is_the_templates(small, thinking_folder, tmp_path):
  tokenizer = load_tokenizer(thinking_folder)
  texts = {
    thinking: tokenizer.hf.decode(tokenizer.encode_prompt(QUESTION, Framing(thinking=thinking)))
    for thinking in ("", "on", "off")
  }
  assert texts[""] == texts["on"] and texts["off"] == f"{texts['']}no thoughts\n"
  path = tmp_path / "a.jsonl"
  path.write_text(json.dumps({"prompt": QUESTION}) + "\n")
  read = {"prompt_field": "prompt", "answer_field": "", "max_prompt": 99}
  off = read_prompts(path, tokenizer=tokenizer, framing=Framing(thinking="off"), **read)
  assert tokenizer.hf.decode(off.token_ids[0]) == texts["off"]
  with pytest.raises(InputError, match=r"config\.data\.thinking is 'off', but no chat template of .* enable_thinking"):
    read_prompts(path, tokenizer=small, framing=Framing(thinking="off"), **read)
  with pytest.raises(InputError, match="enable_thinking"):
    read_prompts(path, tokenizer=tokenizer, framing=Framing(chat=False, thinking="on"), **read)


def test_a_teacher_reads_prompts_in_its_own_template(tiny_pair, tiny_config, tmp_path):
  """One without thoughts, beside a student whose template has a switch for them."""
  for name, template in (("student", THINKING), ("teacher", "{{ messages[-1].content }} Answer:")):
    shutil.copytree(tiny_pair / name, tmp_path / name)
    hf = load_tokenizer(tiny_pair / name).hf
    hf.chat_template = template
    hf.save_pretrained(tmp_path / name)
  flags = [f"{name}.path={tmp_path}/{name}" for name in ("student", "teacher")]
  flags += ["rollout.max_prompt=120", "data.thinking=off", "data.suffix= Think."]

  def opened(*more):
    return open_run(load_config(tiny_config, [f"--config.{flag}" for flag in [*flags, *more]]), tmp_path / "w")

  def note(run):
    return next(finding.note for finding in run.pair.findings if finding.aspect == "chat template")

  own, shared = opened("data.teacher_template=own", "rollout.max_teacher_prompt=80"), opened()
  assert own.config.teacher_prompt == 80 and shared.config.teacher_prompt == 0
  assert own.prompts.token_ids == shared.prompts.token_ids and shared.prompts.teacher_ids == ()
  text = own.prompts.texts[0]
  assert own.pair.tokenizer.hf.decode(own.prompts.teacher_ids[0]) == f"{text} Think. Answer:"
  assert own.pair.tokenizer.hf.decode(own.prompts.token_ids[0]).endswith("no thoughts\n")
  assert "data.teacher_template" in note(shared) and not note(own)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["data.path="], "config.data.path is ''"),
    (["data.mixture=('a.jsonl',)"], "config.data.mixture is .*: it must be empty where data.path is given"),
    (["data.path=", "data.mixture=('',)"], "must be a tuple of texts"),
    (["data.path=", "data.mixture=('2 * {pair}/prompt.jsonl',)"], r"data\.mixture: .*did you mean `prompts\.jsonl`"),
    (["data.thinking=maybe"], "data.thinking"),
    (["data.teacher_template=own", "data.chat=false"], "empty where data.chat is off"),
    (["data.thinking=on"], "leave it empty"),
    (["data.teacher_template=own"], r"teacher_template is 'own', but .*teacher has no chat template"),
    (["data.system={long}"], r"max_prompt allows 32; raise the limit, or shorten config\.data\.system, which every"),
    (["data.mixture=()", "data.path="], "config.data.path is '': .* or data.mixture several"),
    (["data.path=", "data.mixture=('{empty}',)"], r"empty\.jsonl is empty: it has no rows"),
    (["data.path=gsm8k"], r"gsm8k does not exist.*opd_jax\.prepare makes one of a name such as gsm8k"),
    (["data.answer_field=anser"], r"has no field `anser` \(did you mean `answer`\?\); fields present: prompt, answer"),
    (["eval.path={pair}/prompts.jsonl", "eval.grader=gsmk8"], r"unknown grader `gsmk8` \(did you mean `gsm8k`"),
  ],
)
def test_what_does_not_go_together_is_refused(tiny_pair, tiny_config, tmp_path, flags, words):
  (tmp_path / "empty.jsonl").touch()
  names = {"pair": tiny_pair, "empty": tmp_path / "empty.jsonl", "long": "Think step by step. " * 40}
  with pytest.raises(InputError, match=words):
    open_run(load_config(tiny_config, [f"--config.{flag.format(**names)}" for flag in flags]), tmp_path / "w")
  assert not (tmp_path / "w").exists()
