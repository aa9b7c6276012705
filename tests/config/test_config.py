"""Config files and flags: what is accepted, and the one line that says what is not."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_jax import config as configs
from opd_jax.command_line import load_config, split
from opd_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PATHS = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"path": "d"}}


def write(tmp_path, body, signature='arg=""'):
  path = tmp_path / "config.py"
  lines = "".join(f"  {line}\n" for line in body.splitlines())
  path.write_text(
    f"from opd_jax.config import defaults\n\ndef get_config({signature}):\n  c = defaults()\n{lines}  return c\n"
  )
  return str(path)


BODY = 'c.student.path = "s"\nc.teacher.path = "t"\nc.data.path = "d"'


def test_a_file_changes_defaults_and_flags_change_the_file(tmp_path):
  path = write(tmp_path, BODY + "\nc.steps = 7\nc.horizon.max = 64\nc.horizon.buckets = (32, 64)")
  plain = load_config(path)
  assert plain.steps == 7 and plain.ladder() == (32, 64) and plain.optimizer == configs.Optimizer()
  flags = ["--config.steps=9", "--config.optimizer.learning_rate=1", "--config.debug.nans", "--config.seed=3"]
  changed = load_config(path, [*flags, "--config.horizon.buckets=16,64"])
  assert (changed.steps, changed.seed, changed.debug.nans) == (9, 3, True)
  assert changed.optimizer.learning_rate == 1.0 and type(changed.optimizer.learning_rate) is float
  assert changed.ladder() == (16, 64)


@pytest.mark.parametrize("text", ["(16, 64)", "16,64", "[16,64]", "16, 64,"])
def test_rungs_in_a_flag_are_read_as_people_write_them(tmp_path, text):
  path = write(tmp_path, BODY + "\nc.horizon.max = 64")
  assert load_config(path, [f"--config.horizon.buckets={text}"]).horizon.buckets == (16, 64)


def test_a_ladder_follows_its_rule_and_auto_follows_the_schedule(tmp_path):
  path = write(tmp_path, BODY + "\nc.steps = 100\nc.horizon.kind = 'truncated'\nc.horizon.rho = 0.25")
  for text, ladder in (
    ("powers_of_two", (16, 32, 64, 128)),
    ("linear(48)", (48, 96, 128)),
    ("geometric(3)", (16, 48, 128)),
    ("auto", (32, 128)),
  ):
    config = load_config(path, [f"--config.horizon.buckets={text}"])
    assert config.ladder() == ladder and config.bucket(32) == min(rung for rung in ladder if rung >= 32)
    assert configs.from_config_dict(configs.to_dict(config)) == config


def test_the_argument_after_the_colon_reaches_get_config(tmp_path):
  path = write(tmp_path, BODY + "\nc.steps = 1 if arg == 'runlocal' else 100")
  assert load_config(path).steps == 100 and load_config(path + ":runlocal").steps == 1


@pytest.mark.parametrize(
  "override, words",
  [
    ("--config.horizon.bukets=1", ["horizon.bukets", "`buckets`"]),
    ("--config.objectiv.kind=sampled", ["objectiv", "`objective`"]),
    ("--config.optimizer.lr=1", ["optimizer.lr", "`learning_rate`"]),
    ("--config.steps=abc", ["steps", "abc"]),
    ("--config.steps=1.5", ["steps", "1.5"]),
    ("--config.objective.support=techer", ["objective.support", "`teacher`"]),
    ("--config.objective.dual_clip=3.0", ["objective.dual_clip", "objective.clip is 0"]),
    ("--config.objective=3", ["section"]),
    ("--config.steps.x=3", ["steps", "not a section"]),
    ("--config.debug.nans=maybe", ["debug.nans"]),
    ("--config.horizon.buckets=a", ["buckets", "powers_of_two"]),
    ("--config.horizon.buckets=64,32", ["ascending"]),
    ("--config.horizon.buckets=linear(0)", ["config.horizon.buckets", "linear(0)", "at least 1"]),
    ("--config.horizon.buckets=geometric(1)", ["ratio is 1", "above 1"]),
    ("--config.horizon.buckets=8,16", ["128", "16", "horizon"]),
    ("--config.rollout.top_p=0", ["top_p", "above 0"]),
    ("--config.steps=0", ["steps", "at least 1"]),
    ("--config.optimizer.micro_batches=5", ["micro_batches", "divisor of 32"]),
    ("--config.student.path=", ["student.path"]),
    ("--config.horizon.kind=trunkated", ["`truncated`"]),
    ("--config.seed=-1", ["seed"]),
  ],
)
def test_a_bad_flag_is_one_line_that_names_it(tmp_path, override, words):
  with pytest.raises(InputError) as error:
    load_config(write(tmp_path, BODY), [override])
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  "body, words",
  [
    ("c.stepz = 3", ["stepz", "`steps`"]),
    ('c.steps = "many"', ["steps"]),
    ("raise RuntimeError('no disk')", ["line 5", "RuntimeError", "no disk"]),
    ("import sys; sys.exit(3)", ["SystemExit"]),
    ("return 5", ["int", "ConfigDict"]),
    ("c.horizon = 3", ["horizon"]),
    ("1 +", ["SyntaxError", "line 5"]),
  ],
)
def test_a_file_that_is_wrong_or_raises_is_one_line_with_its_place(tmp_path, body, words):
  with pytest.raises(InputError) as error:
    load_config(write(tmp_path, body))
  assert "\n" not in str(error.value) and "config.py" in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_missing_files_functions_and_arguments(tmp_path):
  for spec, word in (("", "--config"), (str(tmp_path / "no.py"), "does not exist")):
    with pytest.raises(InputError, match=word):
      load_config(spec)
  empty = tmp_path / "empty.py"
  empty.write_text("")
  with pytest.raises(InputError, match="get_config"):
    load_config(str(empty))
  with pytest.raises(InputError, match="takes no argument"):
    load_config(write(tmp_path, BODY, signature="") + ":late")


def test_a_plain_configdict_with_unknown_fields_names_the_nearest(tmp_path):
  path = tmp_path / "own.py"
  path.write_text(
    "import ml_collections\ndef get_config():\n"
    "  return ml_collections.ConfigDict(dict(student=dict(path='s'), teacher=dict(path='t'), data=dict(pth='d')))\n"
  )
  with pytest.raises(InputError, match=r"data\.pth.*`path`"):
    load_config(str(path))


def test_flags_are_split_from_the_config_in_both_spellings():
  arguments = [
    "--workdir=w",
    "--config",
    "f.py:x",
    "--config.steps",
    "3",
    "--config.debug.nans",
    "--noconfig.eval.greedy",
  ]
  spec, overrides, rest = split(arguments)
  assert spec == "f.py:x" and rest == ["--workdir=w"]
  assert overrides == ["--config.steps=3", "--config.debug.nans", "--noconfig.eval.greedy"]


@given(
  st.fixed_dictionaries(
    {
      "steps": st.integers(1, 1000),
      "seed": st.integers(0, 2**31 - 1),
      "horizon": st.fixed_dictionaries({"rho": st.floats(0.01, 1.0), "kind": st.sampled_from(configs.HORIZONS)}),
      "objective": st.fixed_dictionaries({"kind": st.sampled_from(["reverse_kl", "lsm", "sampled + 0.5 * jsd"])}),
    }
  )
)
def test_a_config_survives_the_way_through_json(fields):
  import json

  config = configs.from_config_dict({**PATHS, **fields})
  assert configs.from_config_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


def test_every_field_is_read_somewhere():
  """A field that no code reads is a promise that nobody keeps."""
  code = "".join(
    path.read_text()
    for path in (ROOT / "opd_jax").rglob("*.py")
    if path.parent.name != "config" and "test" not in path.name
  )
  code += (ROOT / "opd_jax" / "config" / "fields.py").read_text().split("class Config:", 1)[1]
  code += "self.max, self.rho self.start self.increment self.every self.kind"  # HorizonConfig.build reads its own
  for field in dataclasses.fields(configs.Config):
    if dataclasses.is_dataclass(field.default):
      for inner in dataclasses.fields(field.default):
        assert f".{inner.name}" in code, f"{field.name}.{inner.name}"


def test_changed_fields_are_dotted_names():
  old = configs.from_config_dict(PATHS)
  new = configs.from_config_dict({**PATHS, "steps": 3, "horizon": {"rho": 0.1}})
  assert configs.changed_fields(configs.to_dict(old), new) == ["steps", "horizon.rho"]
  assert configs.changed_fields(configs.to_dict(old), old) == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_also_shrunk(path):
  for suffix, override in itertools.product(("", ":runlocal"), ([], ["--config.seed=1"])):
    load_config(str(path) + suffix, override)


def test_words_of_a_config_argument_work_in_any_order_and_an_unknown_one_is_named():
  path = str(ROOT / "configs" / "qwen3_1p7b_topd.py")
  assert load_config(f"{path}:v5e-16,runlocal") == load_config(f"{path}:runlocal,v5e-16")
  assert load_config(f"{path}:runlocal,v5e-16").mesh.tensor == 1  # a laptop's mesh wins over the machine's
  with pytest.raises(InputError, match=r"'v5e-61'.*did you mean `v5e-16`.*known: .*h200-8, runlocal"):
    load_config(f"{path}:v5e-61")


@pytest.mark.parametrize(
  "line", ["c.data.system = '\\ud800'", "c.student.path = '~\\0/x'", "c.log.wandb_name = 'a\\0'"]
)
def test_texts_that_no_file_takes_are_refused(tmp_path, line):
  with pytest.raises(InputError, match=r"config\.\w+\.\w+ is .*give UTF-8 text"):
    load_config(write(tmp_path, f"{BODY}\n{line}"))


def test_no_config_at_all_is_named():
  with pytest.raises(InputError, match="config is None: it must be a section of fields"):
    configs.from_config_dict(None)
