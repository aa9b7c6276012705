"""One input for `opd_jax.train`, and what it is made beside: a pair of tiny models that nothing is wrong with."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

CONFIG = """
from opd_jax.config import defaults

def get_config(arg=""):
  c = defaults()
  c.steps = 2
  c.student.path = "{base}/student"
  c.teacher.path = "{base}/teacher"
  c.data.path = "{base}/prompts.jsonl"
  c.data.answer_field = "answer"
  c.rollout.prompts_per_step = 8
  c.rollout.max_prompt = 64
  c.horizon.max = 16
  c.horizon.start = 4
  c.horizon.increment = 4
  c.horizon.buckets = (8, 16)
  c.log.tensorboard = False
  return c
"""


@dataclasses.dataclass(frozen=True)
class Case:
  """An input.

  Attributes:
    name: what is wrong with it, for people.
    flags: of `opd_jax.train`, after the base's config file.
    bad: it must be refused; what chance has changed may also be taken as it is.
    config: a config file in the base's place, with its argument; "": the base's.
    alone: only a process of its own can bear it.
  """

  name: str
  flags: tuple[str, ...] = ()
  bad: bool = True
  config: str = ""
  alone: bool = False


Maker = Callable[[random.Random, Path, Path], Case]  # (chance, an empty folder for its files, the base) -> Case


def make_base(folder: Path) -> Path:
  """A folder with student/, teacher/, prompts.jsonl and config.py: a run that could start."""
  import jax

  from opd_jax import models
  from opd_jax.arithmetic import task
  from opd_jax.arithmetic.recipe import DEFAULT
  from opd_jax.arithmetic.tokenizer import save_tokenizer

  fields = {**DEFAULT.architecture.to_config(), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
  fields |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
  for seed, name in enumerate(("student", "teacher")):
    architecture = models.Architecture.from_config(fields, name)
    models.save(models.initialize(architecture, jax.random.key(seed), "float32"), folder / name)
    save_tokenizer(folder / name)
  rows = task.problems(16, (0, 0))
  (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "config.py").write_text(CONFIG.format(base=folder))
  return folder


def copy_student(folder: Path, base: Path) -> Path:
  """The base's student, to break."""
  return Path(shutil.copytree(base / "student", folder / "student"))
