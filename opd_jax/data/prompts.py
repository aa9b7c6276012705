"""Prompt files in, batches of prompt ids out: what the rollout starts from.

rows (JSONL, parquet, TFDS)  ->  PromptSet: ids of every prompt that fits, answers, how many were too long
order(count, seed, position) ->  which prompts this step takes
pad_left                     ->  tokens_bp, mask_bp
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd_jax.data.rows import kind_of, look_up, read_rows
from opd_jax.data.tokenizer import Tokenizer, prompt_text
from opd_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """The prompts of one file, in its order, those that were too long left out.

  Attributes:
    token_ids: ids of each prompt, template and special tokens included.
    answers: the reference answer of each prompt as text; empty strings where the file has no answer field.
    texts: each prompt as plain text, for people to read.
    dropped_long: how many prompts were left out because they, or the teacher's in their place, have more tokens than
      their limit.
    answer_ids: ids of each answer as if it had been written, its end included; empty where not asked for.
    teacher_ids: ids of the prompt that the teacher sees instead; empty where not asked for.
  """

  token_ids: tuple[tuple[int, ...], ...]
  answers: tuple[str, ...]
  texts: tuple[str, ...]
  dropped_long: int
  answer_ids: tuple[tuple[int, ...], ...] = ()
  teacher_ids: tuple[tuple[int, ...], ...] = ()

  def __len__(self) -> int:
    return len(self.token_ids)


def read_prompts(
  path: str | os.PathLike,
  *,
  prompt_field: str,
  answer_field: str,
  tokenizer: Tokenizer,
  max_prompt: int,
  chat: bool = True,
  limit: int = 0,
  stop_ids: Sequence[int] = (),
  teacher_field: str = "",
  max_teacher: int = 0,
) -> PromptSet:
  """Reads a prompt file.

  Args:
    path: `.jsonl` (one object a line), `.parquet`, or a folder prepared by tensorflow-datasets, `FOLDER` (its train
      split) or `FOLDER:split`.
    prompt_field: dotted path (`extra.question`) of the prompt: text, or a list of chat messages with role and content.
    answer_field: dotted path (`reward_model.ground_truth`) of the answer, text or a number; "" where there is none.
    tokenizer: turns prompts into ids.
    max_prompt: longest prompt kept, in tokens.
    chat: use the tokenizer's chat template where it has one.
    limit: stop after this many kept prompts; 0 reads all.
    stop_ids: ids that end an answer; with them the answers are tokenized too.
    teacher_field: dotted path of a prompt that the teacher sees instead; "" where there is none.
    max_teacher: longest of those kept, in tokens.

  Raises:
    InputError: the file, a row of it or a field is missing or malformed, or no prompt fits.
  """
  fields, limits = zip((prompt_field, max_prompt), *([(teacher_field, max_teacher)] if teacher_field else []))
  kept, answers, texts, dropped, shortest = [], [], [], 0, None
  for place, row in read_rows(path, [*fields, *filter(None, [answer_field])]):
    prompts = [_checked_prompt(look_up(row, field, place), field, place) for field in fields]
    answer = _checked_answer(look_up(row, answer_field, place), answer_field, place) if answer_field else ""
    try:
      ids = [tuple(tokenizer.encode_prompt(prompt, chat)) for prompt in prompts]
      written = tokenizer.encode_answer(prompts[0], answer, stop_ids, chat) if stop_ids else ()
    except InputError as error:
      raise InputError(f"{place}: {error}") from error
    for field, prompt in zip(fields, ids):
      if not prompt:
        raise InputError(f"{place}: the prompt in `{field}` is empty")
    lengths = [len(prompt) for prompt in ids]
    shortest = [min(pair) for pair in zip(lengths, shortest or lengths)]
    if any(length > most for length, most in zip(lengths, limits)):
      dropped += 1
      continue
    kept.append((*ids, tuple(written)))
    answers.append(answer)
    texts.append(prompt_text(prompts[0]))
    if len(texts) == limit:
      break
  if shortest is None:
    raise InputError(f"{path} is empty: it has no rows")
  if not texts:
    numbers = [f"the shortest has {length} tokens, the limit is {most}" for length, most in zip(shortest, limits)]
    raise InputError(f"no prompt of {path} is short enough: {', the teacher: '.join(numbers)}; raise the limit")
  token_ids, *teacher_ids, answer_ids = zip(*kept)
  return PromptSet(
    token_ids,
    tuple(answers),
    tuple(texts),
    dropped,
    answer_ids if stop_ids else (),
    teacher_ids[0] if teacher_field else (),
  )


def order(count: int, seed: int, position: int, take: int) -> np.ndarray:
  """Which prompts come next: entries position .. position + take of an endless stream of shuffled epochs.

        epoch 0              epoch 1
      | 2 0 3 1 | 1 3 0 2 | ...          count = 4
              ^ position = 3, take = 3  ->  1 1 3

  Each epoch is its own permutation, drawn from (seed, epoch): a pure function, so that a checkpoint needs only the
  integer `position`.

  Args:
    count: number of prompts, at least 1.
    seed: the run's seed, not negative.
    position: how many were taken before.
    take: how many to take; may exceed `count`.

  Returns:
    int64 [take], values in 0 .. count - 1.
  """
  if take == 0:
    return np.zeros(0, np.int64)
  first, last = position // count, (position + take - 1) // count
  # Raw bits sorted, not Generator.permutation: numpy promises the bit streams for ever, the permutation it does not.
  epochs = [
    np.argsort(np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count), kind="stable")
    for epoch in range(first, last + 1)
  ]
  start = position - first * count
  return np.concatenate(epochs)[start : start + take]


def pad_left(token_lists: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of different lengths as one block, ends aligned, so that every row's first new token has the same column.

      [7 8 9]      . 7 8 9        mask  0 1 1 1
      [5]     ->   . . . 5              0 0 0 1

  Padding is what the mask says; the id that stands there (0) means nothing and may be a real token elsewhere.

  Returns:
    tokens_bp int32 and mask_bp bool, both [B, width].

  Raises:
    ValueError: a prompt is longer than `width`.
  """
  longest = max((len(ids) for ids in token_lists), default=0)
  if longest > width:
    raise ValueError(f"a prompt of {longest} tokens does not fit into {width}")
  lengths = np.array([len(ids) for ids in token_lists], np.int64)
  mask_bp = np.arange(width) >= width - lengths[:, None]
  tokens_bp = np.zeros((len(token_lists), width), np.int32)
  if longest:
    # Row-major order of the mask is the order of the concatenated prompts.
    tokens_bp[mask_bp] = np.concatenate([np.asarray(ids, np.int32) for ids in token_lists])
  return tokens_bp, mask_bp


def _checked_prompt(prompt: Any, field: str, place: str) -> str | list[dict[str, str]]:
  if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
    raise InputError(
      f"{place}: `{field}` must be text or a list of chat messages with text in `role` and `content`, "
      f"not {kind_of(prompt)}"
    )
  try:
    prompt_text(prompt).encode("utf-8")
  except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
    raise InputError(f"{place}: `{field}` holds a broken character ({error.reason}); mend or drop the row") from error
  return prompt


def _is_message(message: Any) -> bool:
  return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _checked_answer(answer: Any, field: str, place: str) -> str:
  if isinstance(answer, (str, int, float, np.integer, np.floating)) and not isinstance(answer, bool):
    return str(answer)
  raise InputError(f"{place}: `{field}` must be text or a number, not {kind_of(answer)}")
