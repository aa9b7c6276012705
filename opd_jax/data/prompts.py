"""Prompt files in, batches of prompt ids out: what the rollout starts from.

rows (JSONL, parquet, TFDS)  ->  PromptSet: ids of every prompt that fits, answers, how many were too long
PromptStream                 ->  which prompts this step takes
pad_left                     ->  tokens_bp, mask_bp
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from opd_jax.data.messages import PLAIN, Framing, answer_in, prompt_in, prompt_text
from opd_jax.data.rows import read_rows
from opd_jax.data.tokenizer import Tokenizer
from opd_jax.errors import InputError, nearest

# So many for each token of the limit are too long for certain, and are not made into millions of tokens first.
_CHARACTERS_A_TOKEN = 128


@dataclasses.dataclass(frozen=True)
class PromptSet:
  """The prompts of one file or of several, in their order, those that were too long left out.

  Attributes:
    token_ids: ids of each prompt, template and special tokens included.
    answers: the reference answer of each prompt as text; empty strings where the file has no answer field.
    texts: each prompt as plain text, as the row has it, for people to read.
    dropped_long: how many prompts were left out because they, or the teacher's in their place, have more tokens than
      their limit.
    answer_ids: ids of each answer as if it had been written, its end included; empty where not asked for.
    teacher_ids: ids of the prompt that the teacher sees instead; empty where not asked for.
    routes: name of the teacher of each prompt; empty where there is one for all.
  """

  token_ids: tuple[tuple[int, ...], ...]
  answers: tuple[str, ...]
  texts: tuple[str, ...]
  dropped_long: int
  answer_ids: tuple[tuple[int, ...], ...] = ()
  teacher_ids: tuple[tuple[int, ...], ...] = ()
  routes: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.token_ids)


def read_prompts(
  path: str | os.PathLike,
  *,
  prompt_field: str,
  answer_field: str,
  tokenizer: Tokenizer,
  max_prompt: int,
  framing: Framing = PLAIN,
  limit: int = 0,
  stop_ids: Sequence[int] = (),
  teacher_field: str = "",
  teacher_tokenizer: Tokenizer | None = None,
  max_teacher: int = 0,
  route_field: str = "",
  routes: Sequence[str] = (),
) -> PromptSet:
  """Reads a prompt file.

  Args:
    path: `.jsonl` (one object a line), `.parquet`, or a folder prepared by tensorflow-datasets, `FOLDER` (its train
      split, or the only one) or `FOLDER:split`.
    prompt_field: dotted path (`extra.question`) of the prompt: text, or a list of chat messages with role and content.
    answer_field: dotted path (`reward_model.ground_truth`) of the answer, text or a number; "" where there is none.
    tokenizer: turns prompts into ids.
    max_prompt: longest prompt kept, in tokens.
    framing: what is put around each prompt, and how chat templates are used.
    limit: stop after this many kept prompts; 0 reads all.
    stop_ids: ids that end an answer; with them the answers are tokenized too.
    teacher_field: dotted path of a prompt that the teacher sees instead; "": that of `prompt_field`.
    teacher_tokenizer: whose chat template renders what the teacher sees; None: the student's.
    max_teacher: longest of the teacher's prompts kept, in tokens; 0 where the teacher sees the student's.
    route_field: dotted path of the name of a row's teacher, one of `routes`; "": there is one for all.

  Raises:
    InputError: the file, a row of it or a field is missing or malformed, no prompt fits, or the template has no switch
      for thinking where `framing` sets it.
  """
  tokenizer.check_thinking(framing)
  if teacher_tokenizer is not None:
    teacher_tokenizer.check_template()
  views = [(prompt_field, tokenizer, max_prompt)]
  if max_teacher:
    views.append((teacher_field or prompt_field, teacher_tokenizer or tokenizer, max_teacher))
  fields, tokenizers, limits = zip(*views)
  kept, answers, texts, taught, dropped, shortest = [], [], [], [], 0, None
  for place, row in read_rows(path, [*fields, *filter(None, [answer_field, route_field])]):
    prompts = [prompt_in(row, field, place) for field in fields]
    answer = answer_in(row, answer_field, place) if answer_field else ""
    route = _route_in(row, route_field, routes, place) if route_field else ""
    if any(len(prompt_text(prompt)) > _CHARACTERS_A_TOKEN * most for prompt, most in zip(prompts, limits)):
      dropped += 1
      continue
    try:
      ids = [tuple(each.encode_prompt(prompt, framing)) for each, prompt in zip(tokenizers, prompts)]
      written = tokenizer.encode_answer(prompts[0], answer, stop_ids, framing) if stop_ids else ()
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
    taught.append(route)
    if len(texts) == limit:
      break
  if shortest is None and dropped:
    raise InputError(f"no prompt of {path} is short enough: all have over {_CHARACTERS_A_TOKEN} characters a token")
  if shortest is None:
    raise InputError(f"{path} is empty: it has no rows")
  if not texts:
    raise InputError(_too_long(path, shortest, limits, framing))
  token_ids, *teacher_ids, answer_ids = zip(*kept)
  return PromptSet(
    token_ids,
    tuple(answers),
    tuple(texts),
    dropped,
    answer_ids if stop_ids else (),
    teacher_ids[0] if max_teacher else (),
    tuple(taught) if route_field else (),
  )


def _route_in(row: dict, field: str, routes: Sequence[str], place: str) -> str:
  route = answer_in(row, field, place)
  if route not in routes:
    raise InputError(
      f"{place}: `{field}` is {route!r}{nearest(route, routes)}, and config.teacher.routes has {', '.join(routes)}: "
      "add it there, or drop the row"
    )
  return route


def _too_long(path: str | os.PathLike, shortest: Sequence[int], limits: Sequence[int], framing: Framing) -> str:
  """The line for a file of which nothing is left: what is too long, and the fields that say what may be."""
  names = ("the shortest has", "config.rollout.max_prompt"), ("the teacher's has", "config.rollout.max_teacher_prompt")
  lengths = zip(names, shortest, limits)
  numbers = [f"{whose} {length} tokens and {field} allows {most}" for (whose, field), length, most in lengths]
  around = [f"config.data.{name}" for name in ("system", "suffix") if getattr(framing, name)]
  shorten = f", or shorten {' and '.join(around)}, which every prompt holds" if around else ""
  return f"no prompt of {path} is short enough: {', '.join(numbers)}; raise the limit{shorten}"


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
  lengths_b1 = _lengths(token_lists, width)
  return _laid_out(token_lists, np.arange(width) >= width - lengths_b1)


def pad_right(token_lists: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  """The same for completions, beginnings aligned: each continues a prompt that ends in one column for all.

  [7 8 9]      7 8 9 .        mask  1 1 1 0
  [5]     ->   5 . . .              1 0 0 0
  """
  lengths_b1 = _lengths(token_lists, width)
  return _laid_out(token_lists, np.arange(width) < lengths_b1)


def _lengths(token_lists: Sequence[Sequence[int]], width: int) -> np.ndarray:
  """int64 [B, 1]. Raises ValueError where one is above `width`."""
  lengths_b1 = np.array([len(ids) for ids in token_lists], np.int64)[:, None]
  longest = lengths_b1.max(initial=0)
  if longest > width:
    raise ValueError(f"a row of {longest} tokens does not fit into {width}")
  return lengths_b1


def _laid_out(token_lists: Sequence[Sequence[int]], mask_bw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The tokens where the mask is true, 0 elsewhere; and the mask."""
  tokens_bw = np.zeros(mask_bw.shape, np.int32)
  if mask_bw.any():
    # Row-major order of the mask is the order of the concatenated rows.
    tokens_bw[mask_bw] = np.concatenate([np.asarray(ids, np.int32) for ids in token_lists])
  return tokens_bw, mask_bw
