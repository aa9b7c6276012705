"""Overrides, config files, workdirs: texts that are no value of their field, no field at all, programs that raise."""

import dataclasses
import random
import typing
from pathlib import Path

from benchmarks.fuzzing.case import CONFIG, Case
from benchmarks.fuzzing.mutate import change_bytes
from opd_jax import config as configs

# By type of field: texts that name no value of it.
_NO_VALUE = {
  int: ("", "abc", "1.5", "1e3", "nan", "[1]", "None", "0x10", "--", "1,000", "9" * 5000, "٣.", "²", "\x1b[31m1"),
  float: ("", "abc", "nan", "inf", "-inf", "1e999", "0x1p3", "1,5", "[]", "--1", "1" * 5000, "½"),
  bool: ("2", "maybe", "yess", "[]", "-1", "0.5", "nan", "tru e"),
}
# Of the right type, and impossible: (field, value).
_IMPOSSIBLE = (
  ("steps", "0"),
  ("steps", "-3"),
  ("steps", "99999999999999999999"),
  ("seed", "-1"),
  ("seed", "2147483648"),
  ("student.dtype", "float16"),
  ("student.path", ""),
  ("teacher.ema", "0.1"),
  ("teacher.canary_every", "-1"),
  ("data.limit", "-1"),
  ("data.thinking", "maybe"),
  ("data.thinking", "on"),
  ("data.prompt_field", "prompt.text"),
  ("data.answer_field", "answr"),
  ("data.mixture", "('2 * {base}/prompts.jsonl',)"),
  ("rollout.prompts_per_step", "0"),
  ("rollout.prompts_per_step", "1000000000000"),
  ("rollout.samples_per_prompt", "-1"),
  ("rollout.max_prompt", "1"),
  ("rollout.max_prompt", "1000000000000"),
  ("rollout.temperature", "-0.5"),
  ("rollout.top_p", "1.0001"),
  ("rollout.top_k", "-1"),
  ("rollout.compactions", "9"),
  ("horizon.kind", "Full"),
  ("horizon.max", "0"),
  ("horizon.max", "1000000000000"),
  ("horizon.rho", "0"),
  ("horizon.buckets", "()"),
  ("horizon.buckets", "8,8"),
  ("horizon.buckets", "16,8"),
  ("horizon.buckets", "8,16,x"),
  ("horizon.buckets", "²"),
  ("horizon.buckets", "8,²"),
  ("horizon.buckets", "1" * 5000),
  ("horizon.buckets", "linear(0)"),
  ("horizon.buckets", "linear(1" + "0" * 5000 + ")"),
  ("horizon.buckets", "geometric(nan)"),
  ("horizon.buckets", "geometric(1)"),
  ("horizon.buckets", "geometric(1.5"),
  ("objective.kind", ""),
  ("objective.kind", "reverse_kl + "),
  ("objective.kind", "-1 * reverse_kl"),
  ("objective.kind", "nan * reverse_kl"),
  ("objective.kind", "lsm" * 1000),
  ("objective.kind", "extrapolated"),
  ("objective.temperature", "0"),
  ("objective.top_k", "0"),
  ("objective.dataset_share", "2"),
  ("objective.mask_first", "('no single token of this',)"),
  ("objective.position_slope", "2"),
  ("optimizer.learning_rate", "-1e-5"),
  ("optimizer.b1", "1"),
  ("optimizer.eps", "0"),
  ("optimizer.warmup_steps", "100000000000000000000"),
  ("optimizer.micro_batches", "3"),
  ("optimizer.skips", "0"),
  ("mesh.tensor", "0"),
  ("mesh.data", "-2"),
  ("mesh.fsdp", "1" + "0" * 100),
  ("checkpoint.every", "0"),
  ("checkpoint.keep", "-1"),
  ("eval.batch", "1" + "0" * 30),
  ("eval.keep_best", "accuracy"),
  ("log.every", "0"),
)
# Two that do not go together.
_TOGETHER = (
  ("horizon.kind=change_point", "horizon.window=17"),
  ("horizon.kind=truncated", "horizon.rho=1.5"),
  ("horizon.kind=progressive", "horizon.start=17"),
  ("horizon.kind=random", "horizon.buckets=auto"),
  ("objective.kind=lsm", "objective.top_k=1000000"),
  ("objective.support=teacher", "objective.repair=truncate"),
  ("objective.support=teacher", "objective.top_k=1"),
  ("objective.support=both", "objective.top_k=4"),
  ("objective.kind=jsd", "objective.support=teacher"),
  ("objective.kind=jsd", "objective.beta=1"),
  ("objective.kind=sampled", "objective.dataset_share=0.5"),
  ("objective.dual_clip=3", "objective.clip=0"),
  ("eval.path={base}/prompts.jsonl", "eval.answer_field=anser"),
  ("eval.sets=('a = {base}/prompts.jsonl', 'a = {base}/prompts.jsonl')", "eval.batch=8"),
  ("teacher.path=student", "teacher.ema=1.5"),
  ("eval.path={base}/prompts.jsonl", "eval.grader=exactly"),
)
_NO_PATHS = (
  "/no/such/place",
  "~nobody_of_this_name/x",
  "x" * 300,
  "/".join(["deep"] * 2000),
  "org/name@" + "v" * 300,
  "nobody/no-such-model@../../x",
  "\x01\x02",
  "-",
  "arithmetic:",
  "arithmetic:uniform",
  "arithmetic:uniform@-1/student",
  "arithmetic:late@99999999999/teacher",
  "s3://bucket/model",
  "http://127.0.0.1:1/model",
  "{base}/prompts.jsonl",
  "{base}/prompts.jsonl/x",
  "\u202etxt",
)
_BODIES = (
  "",
  "\x00",
  "1 +",
  "def get_config(:\n  pass",
  "raise SystemExit(0)",
  "raise BaseException('no')",
  "raise Exception('a\\nb\\x1b[31mc')",
  "import no_such_module",
  "import sys; sys.exit(7)",
  "1 / 0",
  "get_config = 5",
  "def get_config(): return None",
  "def get_config(): return {}",
  "def get_config(a, b): return a",
  "def get_config(): return get_config()",
  "def get_config():\n  from ml_collections import ConfigDict\n  return ConfigDict({'stepz': 1})",
  "def get_config():\n  from ml_collections import ConfigDict\n  return ConfigDict({'student': 1})",
  "def get_config():\n  from ml_collections import ConfigDict\n  return ConfigDict({'steps': object()})",
  "def get_config():\n  from ml_collections import ConfigDict\n  return ConfigDict({'steps': 10**5000})",
  "def get_config():\n  from ml_collections import ConfigDict\n  c = ConfigDict()\n  c.student = c\n  return c",
  "def get_config():\n  from ml_collections import config_dict as d\n"
  "  return d.ConfigDict({'steps': d.required_placeholder(int)})",
  *(
    f"def get_config():\n  from opd_jax.config import defaults\n  c = defaults()\n  c.{line}\n  return c"
    for line in ("steps = 'many'", "horizon.buckets = (1, 'a')", "optimizer.eps = 10**400", "stepz = 1", "mesh = []")
  ),
  "def get_config():\n  raise KeyError",
  "def get_config():\n  raise MemoryError",
  "def get_config():\n  return (" + "(" * 500 + ")" * 500 + ")",
  "\ufeff\ufeffx = 1",
  "# coding: no-such-codec\n",
  "\t  def get_config(): pass",
  "from __future__ import braces",
  "x = '" + "a" * 100_000,
)


def _fields(cls=configs.Config, where: str = "") -> list[tuple[str, type]]:
  """(dotted name, type) of every field of a config."""
  found = []
  for name, hint in typing.get_type_hints(cls).items():
    inner = dataclasses.is_dataclass(hint)
    found += _fields(hint, f"{where}{name}.") if inner else [(where + name, hint)]
  return found


FIELDS = _fields()


def override(chance: random.Random, folder: Path, base: Path) -> Case:
  """A flag that is no value, or an impossible one, or of no field."""
  match chance.randrange(5):
    case 0:
      name, hint = chance.choice([field for field in FIELDS if field[1] in _NO_VALUE])
      flags = (f"--config.{name}={chance.choice(_NO_VALUE[hint])}",)
    case 1:
      flags = tuple(f"--config.{text}" for text in ("=".join(chance.choice(_IMPOSSIBLE)),))
    case 2:
      flags = tuple(f"--config.{text}" for text in chance.choice(_TOGETHER))
    case 3:
      name, at = chance.choice(FIELDS)[0], chance.randrange(1, 4)
      flags = (f"--config.{name[:at]}{chance.choice('xq_.9é')}{name[at:]}=1",)
    case _:
      field = chance.choice(("student.path", "teacher.path", "data.path"))
      path = chance.choice(_NO_PATHS)
      flags = (f"--config.{field}={path if field != 'data.path' or '{base}' not in path else path + '/x'}",)
  return Case(f"override {flags[0][:80]}", tuple(flag.replace("{base}", str(base)) for flag in flags))


def config_file(chance: random.Random, folder: Path, base: Path) -> Case:
  """A program that is none, raises, or gives something else; or the base's with a few bytes changed."""
  path = folder / chance.choice(("config.py", "config.py", "config.py", "config.txt", "config"))
  if chance.random() < 0.6:
    body = chance.choice(_BODIES)
    path.write_text(body, encoding="utf-8", errors="surrogatepass")
    return Case(f"config file {body[:60]!r}", config=str(path))
  data = CONFIG.format(base=base).encode()
  path.write_bytes(change_bytes(chance, data))
  return Case("config file, bytes changed", bad=path.suffix != ".py", config=str(path))


def workdir(chance: random.Random, folder: Path, base: Path) -> Case:
  """A --workdir that cannot be one, or that holds the config.json of something else."""
  place = folder / "run"
  match chance.randrange(7):
    case 0:
      place.write_text("a file")
      return Case("workdir is a file", (f"--workdir={place}",))
    case 1:
      return Case("workdir is a URL", (f"--workdir={chance.choice(('gs', 's3', 'http'))}://bucket/{folder.name}",))
    case 2:
      return Case("no workdir", ("--workdir=",))
    case 3:
      return Case("unknown flag", (f"--w{chance.randrange(10**6)}=1",))
    case 4:
      return Case("an argument too many", (f"extra{chance.randrange(10**6)}",))
    case 5:
      place.mkdir()
      (place / "config.json").write_text(f'{{"seed": {chance.randrange(1, 10**6)}}}')
      return Case("workdir of another run", (f"--workdir={place}",))
    case _:
      place.mkdir()
      broken = chance.choice(("{", "[]", "[" * 100_000, '{"seed": "a"}', '{"stepz": 1}', "\x00", '{"student": 3}'))
      (place / "config.json").write_text(broken)
      return Case(f"workdir with config.json {broken[:20]!r}", (f"--workdir={place}",))
