"""Marks for a model: it answers every question of every set at the full horizon, and a grader compares with the
references.

The same sampler as in training, as two programs of the run's table: "evaluate_greedy" (k = 1, temperature 0) and
"evaluate_sampled" (k answers), after training's own "decode_layout" or, where that rounds to int8, "evaluate_layout",
so that marks are always those of the full precision that is trained and saved. All sets are answered in batches of one
shape: a further set compiles nothing. The random keys are folded from (seed, a step that training never reaches, row of
the set), so that every evaluation of a run draws alike, and the same folder evaluated twice gives the same answers.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.config import Config
from opd_jax.data import Framing, PromptSet, Tokenizer, pad_left, read_prompts
from opd_jax.distributed import fetch, place_rows
from opd_jax.evaluation import marks, token_kl
from opd_jax.evaluation.graders import extract, grade
from opd_jax.evaluation.questions import Questions, Setting, Source, list_settings
from opd_jax.models import Model
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Sampling, decode_layout, sample_completions
from opd_jax.telemetry.record import row_label
from opd_jax.telemetry.workdir import RunLog

_STEP = 2**32 - 1  # of the random keys


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One model's marks on one set: a row of eval.jsonl, and a few graded samples for samples.jsonl."""

  row: dict[str, Any]
  samples: list[dict[str, Any]]

  @property
  def label(self) -> str:
    """What the mark is called."""
    return row_label(self.row)

  def write(self, log: RunLog) -> None:
    """Appends it to eval.jsonl and samples.jsonl."""
    log.evaluation(self.row)
    log.samples(self.samples)


class _Answers(NamedTuple):
  """To every question of a set: k texts, and the token ids of the first; and of all answers in turn their lengths in
  tokens, and whether the horizon cut them."""

  texts: list[list[str]]
  first_ids: list[list[int]]
  lengths: list[int]
  truncated: list[bool]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Evaluates models on sets of questions; made by `make_evaluator`."""

  config: Config
  table: ProgramTable
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  sets: tuple[Questions, ...]

  def __call__(self, model: Model, name: str, step: int, teacher: Model | None = None) -> list[Evaluation]:
    """Marks of `model` (called `name` in the rows) after `step` updates: set by set, and of each greedy ones first.

    With a `teacher` the samples say at each token how far it is from there to the teacher (`token_kl`).
    """
    writer = self.table.run(layout_program(self.config), 0, model)
    evaluations = []
    for questions in self.sets:
      for setting in list_settings(self.config.eval):
        row, samples, answers = self._evaluate(writer, name, step, questions, setting)
        if teacher and samples:
          pairs = questions.prompts.token_ids[: len(samples)], answers[: len(samples)]
          kl = token_kl.measure(self.config, self.table, self.mesh, model, teacher, *pairs)
          for sample, ids, kl_s in zip(samples, answers, kl):
            sample |= {"tokens": self.tokenizer.pieces(ids[: len(kl_s)]), "kl": kl_s.round(3).tolist()}
        evaluations.append(Evaluation(row, samples))
    return evaluations

  def _evaluate(
    self, model: Model, name: str, step: int, questions: Questions, setting: Setting
  ) -> tuple[dict[str, Any], list[dict[str, Any]], list[list[int]]]:
    """The row of eval.jsonl, the samples, and the token ids of the first answer to each question."""
    started = time.perf_counter()
    kind, prompts = questions.grader, questions.prompts
    texts_nk, first_ids, lengths, truncated = self._answer(model, prompts, setting)
    correct_nk = np.array(
      [[grade(kind, text, answer) for text in texts] for texts, answer in zip(texts_nk, prompts.answers, strict=True)],
      np.float64,
    )
    row = {
      "step": step,
      "set": questions.name,
      "model": name,
      "k": setting.k,
      "temperature": setting.temperature,
      **marks.describe(correct_nk, [[extract(kind, text) for text in texts] for texts in texts_nk]),
      "prompts": len(prompts),
      "length": float(np.mean(lengths)),
      "truncated": float(np.mean(truncated)),
      "seconds": time.perf_counter() - started,
    }
    samples = [
      {
        **{key: row[key] for key in ("step", "set", "model", "temperature")},
        "prompt": prompts.texts[i],
        "completion": texts_nk[i][0],
        "answer": prompts.answers[i],
        "correct": bool(correct_nk[i, 0]),
      }
      for i in range(min(self.config.log.samples, len(prompts)))
    ]
    return row, samples, first_ids

  def _answer(self, model: Model, prompts: PromptSet, setting: Setting) -> _Answers:
    """All batches have one shape; the last one is filled up with copies of its first prompt, which are thrown away."""
    c, k = self.config, setting.k
    answers = _Answers([], [], [], [])
    for first in range(0, len(prompts), c.eval.batch):
      ids = list(prompts.token_ids[first : first + c.eval.batch])
      real = len(ids)
      ids += [ids[0]] * (c.eval.batch - real)
      rows = np.arange(first * k, (first + c.eval.batch) * k, dtype=np.uint32)
      arrays = place_rows(self.mesh, (*pad_left(ids, c.rollout.max_prompt), rows))
      numbers = (np.int32(c.horizon.max), np.uint32(c.seed), np.uint32(_STEP))
      result = fetch(self.table.run(setting.program, c.horizon.max, model, *arrays[:2], *numbers, arrays[2]))
      for row in range(real * k):
        kept = result.completions_bs[row][result.completion_mask_bs[row]].tolist()
        if row % k == 0:
          answers.texts.append([])
          answers.first_ids.append(kept)
        answers.texts[-1].append(self.tokenizer.decode(kept))
        answers.lengths.append(len(kept))
        answers.truncated.append(bool(result.truncated_b[row]))
    return answers


def make_evaluator(
  config: Config, table: ProgramTable, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, sources: tuple[Source, ...]
) -> Evaluator:
  """Reads the sets. Raises InputError where one of them cannot be read."""
  sets = tuple(
    Questions(
      source.name,
      source.grader,
      read_prompts(
        source.path,
        prompt_field=source.prompt_field,
        answer_field=source.answer_field,
        tokenizer=tokenizer,
        max_prompt=config.rollout.max_prompt,
        framing=Framing.of(config.data),
        limit=config.eval.prompts,
      ),
    )
    for source in sources
  )
  return Evaluator(config, table, mesh, tokenizer, sets)


def layout_program(config: Config) -> str:
  """The program that lays a model out for its evaluation, in full precision (a teacher in int8 stays as it is):
  training's own, unless `rollout.int8` makes that round to int8."""
  return "evaluate_layout" if config.rollout.int8 else "decode_layout"


def define_programs(table: ProgramTable, config: Config, eos_ids: tuple[int, ...], vocab_size: int) -> None:
  """Enters the evaluation's programs into the table, "evaluate_layout" where training's layout is in int8; signatures
  as `rollout.decode_layout`, `rollout.sample_completions` and `token_kl.token_kl`."""
  c = config.eval
  token_kl.define_programs(table, config, vocab_size)
  if (layout := layout_program(config)) != "decode_layout":
    table.define(layout, functools.partial(decode_layout, dtype=jnp.dtype(config.student.dtype)))
  for program, sampling in (
    ("evaluate_greedy", Sampling(0.0)),
    ("evaluate_sampled", Sampling(c.temperature, c.top_k, c.top_p)),
  ):
    table.define(
      program,
      functools.partial(
        sample_completions,
        sampling=sampling,
        eos_ids=eos_ids,
        vocab_size=vocab_size,
        compactions=c.compactions,
      ),
    )
