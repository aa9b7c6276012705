"""Marks for a model: it answers every prompt of a set at the full horizon, and a grader compares with the reference.

The same sampler as in training, as two programs of the run's table: "evaluate_greedy" (k = 1, temperature 0) and
"evaluate_sampled" (avg@k), after training's own "decode_layout" or, where that rounds to int8, "evaluate_layout", so
that marks are always those of the full precision that is trained and saved. The random keys are folded from (seed, a
step that training never reaches, row), so that every evaluation of a run draws alike, and the same folder evaluated
twice gives the same answers.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.config import Config
from opd_jax.data import PromptSet, Tokenizer, pad_left
from opd_jax.distributed import fetch, place_rows
from opd_jax.evaluation.graders import grade
from opd_jax.models import Model
from opd_jax.programs import ProgramTable
from opd_jax.rollout import Sampling, decode_layout, sample_completions

_STEP = 2**32 - 1  # of the random keys
_GREEDY, _SAMPLED = "evaluate_greedy", "evaluate_sampled"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One model's marks on one set: a row of eval.jsonl, and a few graded samples for samples.jsonl."""

  row: dict[str, Any]
  samples: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Evaluates models on one set of prompts; made by `make_evaluator`."""

  config: Config
  table: ProgramTable
  mesh: jax.sharding.Mesh
  tokenizer: Tokenizer
  prompts: PromptSet
  set_name: str

  def __call__(self, model: Model, name: str, step: int) -> list[Evaluation]:
    """Greedy and sampled marks of `model` (called `name` in the rows) after `step` updates."""
    c = self.config.eval
    settings = [(_GREEDY, 1, 0.0)] if c.greedy else []
    settings += [(_SAMPLED, c.samples, c.temperature)] if c.samples else []
    model = self.table.run(layout_program(self.config), 0, model)
    return [self._evaluate(model, name, step, *setting) for setting in settings]

  def _evaluate(self, model: Model, name: str, step: int, program: str, k: int, temperature: float) -> Evaluation:
    started = time.perf_counter()
    completions, lengths, truncated = self._generate(model, program, k)
    correct_nk = np.array(
      [
        [grade(self.config.eval.grader, text, answer) for text in texts]
        for texts, answer in zip(completions, self.prompts.answers, strict=True)
      ],
      np.float64,
    )
    accuracy_n = correct_nk.mean(axis=1)  # the k answers to one question are not independent: one number a question
    n = len(accuracy_n)
    row = {
      "step": step,
      "set": self.set_name,
      "model": name,
      "k": k,
      "temperature": temperature,
      "accuracy": float(accuracy_n.mean()),
      "stderr": float(accuracy_n.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
      "prompts": n,
      "length": float(np.mean(lengths)),
      "truncated": float(np.mean(truncated)),
      "seconds": time.perf_counter() - started,
    }
    samples = [
      {
        **{key: row[key] for key in ("step", "set", "model", "temperature")},
        "prompt": self.prompts.texts[i],
        "completion": completions[i][0],
        "answer": self.prompts.answers[i],
        "correct": bool(correct_nk[i, 0]),
      }
      for i in range(min(self.config.log.samples, n))
    ]
    return Evaluation(row, samples)

  def _generate(self, model: Model, program: str, k: int) -> tuple[list[list[str]], list[int], list[bool]]:
    """k answers to every prompt: texts, lengths in tokens, and whether the horizon cut them.

    All batches have one shape; the last one is filled up with copies of its first prompt, which are thrown away.
    """
    c = self.config
    completions, lengths, truncated = [], [], []
    for first in range(0, len(self.prompts), c.eval.batch):
      ids = list(self.prompts.token_ids[first : first + c.eval.batch])
      real = len(ids)
      ids += [ids[0]] * (c.eval.batch - real)
      rows = np.arange(first * k, (first + c.eval.batch) * k, dtype=np.uint32)
      arrays = place_rows(self.mesh, (*pad_left(ids, c.rollout.max_prompt), rows))
      numbers = (np.int32(c.horizon.max), np.uint32(c.seed), np.uint32(_STEP))
      result = fetch(self.table.run(program, c.horizon.max, model, *arrays[:2], *numbers, arrays[2]))
      for row in range(real * k):
        kept = result.completions_bs[row][result.completion_mask_bs[row]]
        if row % k == 0:
          completions.append([])
        completions[-1].append(self.tokenizer.decode(kept.tolist()))
        lengths.append(len(kept))
        truncated.append(bool(result.truncated_b[row]))
    return completions, lengths, truncated


def layout_program(config: Config) -> str:
  """The program that lays a model out for its evaluation, in full precision (a teacher in int8 stays as it is):
  training's own, unless `rollout.int8` makes that round to int8."""
  return "evaluate_layout" if config.rollout.int8 else "decode_layout"


def define_programs(table: ProgramTable, config: Config, eos_ids: tuple[int, ...], vocab_size: int) -> None:
  """Enters the evaluation's programs into the table, "evaluate_layout" where training's layout is in int8; signatures
  as `rollout.decode_layout` and `rollout.sample_completions`."""
  c = config.eval
  if (layout := layout_program(config)) != "decode_layout":
    table.define(layout, functools.partial(decode_layout, dtype=jnp.dtype(config.student.dtype)))
  for program, sampling in ((_GREEDY, Sampling(0.0)), (_SAMPLED, Sampling(c.temperature, c.top_k, c.top_p))):
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
