"""The sets that a run is marked on: where each is, how it is read and graded, and what its marks are called.

    eval.path   "data/aime24/test.parquet"                             called "test", by its file
    eval.sets   "aime25 = data/aime25/test.parquet"                    called "aime25"; fields and grader those of eval
                "gsm8k = gsm8k/test.jsonl; grader=gsm8k; prompt_field=question; answer_field=answer"

One setting of one set is one mark, and is called as in every table and chart: "aime25 greedy", "aime25 T=0.7 avg@16".
"""

import dataclasses
from pathlib import Path

from opd_jax.config import Eval
from opd_jax.data import PromptSet, read_options
from opd_jax.errors import InputError, nearest
from opd_jax.evaluation.graders import check_kind
from opd_jax.telemetry.record import set_label

_OPTIONS = ("prompt_field", "answer_field", "grader")


@dataclasses.dataclass(frozen=True)
class Source:
  """A set that a config names.

  Attributes:
    config_field: that names it, `eval.path` or `eval.sets`.
    name: in the rows of eval.jsonl and samples.jsonl.
    path, prompt_field, answer_field: as `data.read_prompts` takes them.
    grader: kind, as `graders.grade` takes it.
  """

  config_field: str
  name: str
  path: str
  prompt_field: str
  answer_field: str
  grader: str


@dataclasses.dataclass(frozen=True)
class Questions:
  """A set that was read."""

  name: str
  grader: str
  prompts: PromptSet


@dataclasses.dataclass(frozen=True)
class Setting:
  """A way of sampling that a set is marked under: `k` answers a question."""

  program: str
  k: int
  temperature: float


def list_sources(config: Eval) -> tuple[Source, ...]:
  """The sets of a config, that of `eval.path` first. Raises InputError for a text that does not name one, an unknown
  grader, or two sets of one name."""
  shared = {option: getattr(config, option) for option in _OPTIONS}
  # A TFDS folder's split stands behind its path: FOLDER:test.
  sources = [Source("eval.path", Path(Path(config.path).name.partition(":")[0]).stem, config.path, **shared)]
  sources = sources if config.path else []
  for text in config.sets:
    name, path, options = _parse(text)
    sources.append(Source("eval.sets", name, path, **shared | options))
  names = [source.name for source in sources]
  for source in sources:
    check_kind(source.grader)
    if not source.answer_field:
      raise InputError(
        f"config.{source.config_field}: {source.path} has no answer_field, so that nothing can be marked"
      )
    if names.count(source.name) > 1:
      raise InputError(f"config.eval has {names.count(source.name)} sets called {source.name!r}: name them apart")
  return tuple(sources)


def list_settings(config: Eval) -> tuple[Setting, ...]:
  """Under which every set is marked: greedily, by `eval.samples` answers, or both."""
  settings = [Setting("evaluate_greedy", 1, 0.0)] if config.greedy else []
  settings += [Setting("evaluate_sampled", config.samples, config.temperature)] if config.samples else []
  return tuple(settings)


def list_labels(config: Eval) -> list[str]:
  """What the marks of a config are called, in the order in which they are given: set by set."""
  settings = list_settings(config)
  return [set_label(source.name, each.k, each.temperature) for source in list_sources(config) for each in settings]


def best_label(config: Eval) -> str:
  """What the mark is called that `eval.keep_best` goes by; "" where it is empty. Raises InputError where there is no
  such mark, the nearest named."""
  wanted, labels = config.keep_best, list_labels(config)
  if not wanted or wanted in labels:
    return wanted
  if wanted == "accuracy" and labels:
    return labels[0]
  known = ", ".join(["accuracy", *labels]) if labels else "none, for there is no evaluation set"
  raise InputError(f"config.eval.keep_best is {wanted!r}{nearest(wanted, labels)}; known: {known}")


def _parse(text: str) -> tuple[str, str, dict[str, str]]:
  """`NAME = PATH; option=value; ...` as name, path and options."""
  first, *rest = text.split(";")
  name, path = (side.strip() for side in first.partition("=")[::2])
  if not (name and path):
    raise InputError(f"config.eval.sets has {text!r}: write NAME = PATH, such as 'aime25 = aime25/test.parquet'")
  options = read_options(rest, _OPTIONS, f"config.eval.sets: set {name!r}")
  return name, path, {option: value.strip() for option, value in options.items()}
