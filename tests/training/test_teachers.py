"""Several teachers, each with the rows that name it: who scores a row, whose turn it is, what a run keeps of each."""

import json
import shutil

import jax
import numpy as np
import pytest

from opd_jax.command_line import load_config
from opd_jax.data import RoutedStream
from opd_jax.distributed import fetch
from opd_jax.errors import InputError
from opd_jax.planning.footprint import resident
from opd_jax.planning.subject import abstract_mesh, read_architectures
from opd_jax.training import open_run, train
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.student import start
from opd_jax.training.teacher import load_frozen
from tests.conftest import timeless_rows, write_model

NAMES = ("math", "code")


@pytest.fixture(scope="module")
def config(tiny_pair, tmp_path_factory):
  """A config file on two teachers alike, and prompts of which a third name `code`."""
  folder = tmp_path_factory.mktemp("routes")
  teacher = json.loads((tiny_pair / "teacher" / "config.json").read_text())
  write_model(folder / "code", teacher["vocab_size"], teacher["hidden_size"], seed=5)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copyfile(tiny_pair / "teacher" / name, folder / "code" / name)
  rows = [json.loads(line) for line in (tiny_pair / "prompts.jsonl").read_text().splitlines()]
  for i, row in enumerate(rows):
    row["meta"] = {"domain": NAMES[i % 3 == 2]}
  (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  path = folder / "config.py"
  path.write_text(f"""
from opd_jax.config import defaults

def get_config(arg=""):
  c = defaults()
  c.steps = 5
  c.student.path = "{tiny_pair}/student"
  c.teacher.routes = ("math = {tiny_pair}/teacher", "code = {folder}/code")
  c.data.path = "{folder}/prompts.jsonl"
  c.data.teacher_field = "meta.domain"
  c.rollout.prompts_per_step = 4
  c.rollout.max_prompt = 32
  c.horizon.max = 8
  c.horizon.buckets = (8,)
  c.optimizer.learning_rate = 1e-3
  c.eval.path = "{folder}/prompts.jsonl"
  c.eval.prompts = 4
  c.eval.batch = 4
  c.log.tensorboard = False
  c.log.fail_on_unplanned_compile = True
  return c
""")
  return str(path), {"math": tiny_pair / "teacher", "code": folder / "code"}


def opened(config, workdir, *flags):
  return open_run(load_config(config[0], [f"--config.{flag}" for flag in flags]), workdir, jax.devices()[:1])


def rows(workdir, file="metrics.jsonl"):
  return timeless_rows(workdir / file)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  run = opened(config, workdir)
  train(run)
  return run, workdir


def test_steps_take_turns_and_a_steps_prompts_have_one_teacher():
  routes = np.array(["a", "b", "b"] * 40 + ["c"] * 60)  # two parts, of which the second weighs twice as much
  stream = RoutedStream(routes.tolist(), [120, 60], [1.0, 2.0], seed=3, step=4)
  steps = [stream.take(4 * k, 4) for k in range(180)]
  turns = [set(routes[step]) for step in steps]
  assert all(len(names) == 1 for names in turns)
  shares = {name: sum(names == {name} for names in turns) / len(turns) for name in "abc"}
  for name, share in {"a": 1 / 9, "b": 2 / 9, "c": 2 / 3}.items():
    assert shares[name] == pytest.approx(share, abs=0.02)
  for name in "abc":
    taken = np.concatenate([step for step, names in zip(steps, turns) if names == {name}])
    own = np.flatnonzero(routes == name)
    assert sorted(taken[: len(own)]) == own.tolist()  # an epoch has each of them once
  again = RoutedStream(routes.tolist(), [120, 60], [1.0, 2.0], seed=3, step=4)
  np.testing.assert_array_equal(again.take(4 * 99, 4), steps[99])  # a position is all its state


def test_each_row_is_scored_by_the_teacher_that_it_names(config, whole):
  """The loss of the first step of each, from its prompts and what the untrained student wrote, by transformers."""
  import torch
  from transformers import AutoModelForCausalLM

  run, workdir = whole
  metrics = rows(workdir)
  named = [run.prompts.routes[run.stream.take(4 * k, 4)[0]] for k in range(5)]
  assert [row["teacher"] for row in metrics] == named and set(named) == set(NAMES)

  still = opened(config, workdir / "still", "optimizer.learning_rate=0", "eval.path=", "steps=5")

  class Unsaved:
    latest = staticmethod(lambda: None)

  steps = Pipeline(still, load_frozen(still)[0], *start(still, Unsaved()))
  losses, written = [], []
  for k in range(5):
    student = still.table.run("decode_layout", 0, steps.state.student)
    written.append(fetch(still.table.run("rollout", 8, student, *steps._batch(steps._choose(), k, 8))))
    steps.advance()
    losses.append(steps.drain()["loss"])

  def logprobs(model, row):
    with torch.no_grad():
      return model(torch.tensor(row[None])).logits[0, :, : run.pair.vocab_size].double().log_softmax(-1)

  student = AutoModelForCausalLM.from_pretrained(still.student_path, dtype=torch.float64)
  teachers = {name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for name, path in config[1].items()}
  for name in NAMES:
    k = named.index(name)
    loss = {other: 0.0 for other in NAMES}
    for r in range(4):
      prompt = written[k].prompts_bp[r][written[k].prompt_mask_bp[r]]
      completion = written[k].completions_bs[r][written[k].completion_mask_bs[r]]
      row, window = np.concatenate([prompt, completion]).astype(np.int64), slice(len(prompt) - 1, -1)
      ours = logprobs(student, row)[window]
      for other in NAMES:
        loss[other] += float((ours.exp() * (ours - logprobs(teachers[other], row)[window])).sum())
    tokens = written[k].completion_mask_bs.sum()
    assert losses[k] == pytest.approx(loss[name] / tokens, rel=1e-4)
    assert all(abs(losses[k] - loss[other] / tokens) > 0.01 for other in NAMES if other != name)


def test_one_program_serves_all_and_each_has_its_marks_and_its_canary(whole):
  run, workdir = whole
  compiled = [(c.program, c.bucket) for c in run.table.compiles]
  assert compiled.count(("update", 8)) == 1 and compiled.count(("canary", 8)) == 2  # of teachers, of the student
  marks = [(row["step"], row["model"]) for row in rows(workdir, "eval.jsonl")]
  assert marks == [(0, "teacher math"), (0, "teacher code"), (0, "student"), (5, "student")]
  kept = {name: json.loads((workdir / f"canary.{name}.json").read_text())["rows"] for name in NAMES}
  for name in NAMES:
    prompts = {run.prompts.token_ids[i] for i, route in enumerate(run.prompts.routes) if route == name}
    assert {tuple(row["prompt"]) for row in kept[name]} <= prompts


def test_resuming_changes_no_bit(config, whole, tmp_path):
  train(opened(config, tmp_path, "steps=2"))
  train(opened(config, tmp_path))
  assert rows(tmp_path) == rows(whole[1])


def test_teachers_that_changed_places_are_refused(config, whole, tmp_path):
  """The names say who scores what: the same two folders the other way round are other teachers."""
  shutil.copytree(whole[1], tmp_path / "w")
  saved = json.loads((tmp_path / "w" / "config.json").read_text())
  saved["teacher"]["routes"] = [f"math = {config[1]['code']}", f"code = {config[1]['math']}"]
  (tmp_path / "w" / "config.json").write_text(json.dumps(saved))
  flags = [f"teacher.routes=('math = {config[1]['code']}', 'code = {config[1]['math']}')", "steps=6"]
  with pytest.raises(InputError, match=r"is not the teacher that .* was trained with"):
    train(opened(config, tmp_path / "w", *flags))


def test_a_plan_counts_them_all(config):
  several = load_config(config[0])
  routes = several.teacher.routes[:1]
  one = load_config(config[0], [f"--config.teacher.routes={routes!r}"])
  two, single = (resident(c, read_architectures(c), abstract_mesh(c, 1)) for c in (several, one))
  assert two.teacher == 2 * single.teacher and two.student == single.student


@pytest.mark.parametrize(
  "flags, words",
  [
    (["teacher.path=student"], r"teacher\.routes.*empty where teacher\.path is given"),
    (["teacher.routes=()"], r"teacher\.path is ''"),
    (["data.teacher_field="], r"data\.teacher_field is ''.*names a row's teacher"),
    (["teacher.routes=('math',)"], r"'math'.*NAME = PATH"),
    (["teacher.routes=('math = a', 'math = b')"], r"names that differ"),
    (["teacher.routes=('math = MATH', 'coed = CODE')"], r"line 3: `meta\.domain` is 'code' \(did you mean `coed`\?\)"),
    (["teacher.routes=('math = MATH', 'code = CODE', 'law = CODE')"], r"has law, and no prompt"),
    (["teacher.routes=('math = MATH', 'code = student')"], r"code is of another architecture than math"),
    (["data.teacher_field=meta.domian"], r"did you mean `meta\.domain`"),
    (["data.teacher_template=own"], r"data\.teacher_template.*empty with teacher\.routes"),
  ],
)
def test_what_does_not_go_together_is_one_line(config, tmp_path, flags, words):
  filled = [flag.replace("MATH", str(config[1]["math"])).replace("CODE", str(config[1]["code"])) for flag in flags]
  with pytest.raises(InputError, match=words):
    opened(config, tmp_path / "w", *filled)
  assert not (tmp_path / "w").exists()


def test_a_part_of_a_mixture_names_its_teachers_in_a_field_of_its_own(config, tmp_path):
  lines = [json.dumps({"prompt": f"Ada has {i} apples.", "who": "code"}) for i in range(5)]
  (tmp_path / "more.jsonl").write_text("\n".join(lines))
  first = config[0].replace("config.py", "prompts.jsonl")
  parts = f"data.mixture=('{first}; limit=6', '2 * {tmp_path}/more.jsonl; teacher_field=who')"
  run = opened(config, tmp_path / "w", "data.path=", parts)
  assert run.prompts.routes == ("math", "math", "code") * 2 + ("code",) * 5
