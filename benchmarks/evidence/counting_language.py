"""A pair that has the three failures of arXiv 2603.25562, on a language of 16 tokens.

prompt    _ 4                            counts on from there to the top, one number a token
right     5 6 7 8 9 10 11 END
teacher   5 so 6 7 so 8 9 10 11 DONE     fillers often; another token for the end; and once it has written a number
          5 6 6 6 6 6 6 6 6 ...          twice, which it seldom does, it repeats it for ever
student   5 7 8 10 11 END                leaves numbers out; seldom a filler; writes a number twice more often than
          5 6 6 7 8 10 11 END            the teacher, but comes out of it

1 lopsided      most written tokens cost the student a little; the few fillers carry most of the reward
2 loops         after a double the teacher approves of every repeat
3 spelling      the student's right end is all but impossible for the teacher
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.evidence.tiny_pairs import Texts, log_probs, speaker
from opd_jax.models import Model
from opd_jax.rollout import Sampling, sample_completions

END, DONE, FILLER, _FIRST = 1, 2, 3, 4  # ids; number n is _FIRST + n
NUMBERS = 12
V, P, S = _FIRST + NUMBERS, 2, 28
_TOP, _STARTS = NUMBERS - 1, 6  # prompts give 0 .. 5
_LOOP = 4  # equal tokens at the end of a row that did not end
_TEXTS = 4096
_WATCHED, _WATCHED_STEP = 512, 1 << 20  # rows, and a step of the random keys that no training reaches


@dataclasses.dataclass(frozen=True)
class Habits:
  """Chances of leaving a number out (after every third), of a filler, of writing a number twice, and of writing it once
  more after that; the token of the end."""

  skip: float
  filler: float
  double: float
  again: float
  end: int

  def write(self, start: int, generator: np.random.Generator) -> list[int]:
    """A completion of at most S tokens."""
    tokens, number = [], start
    while number < _TOP and len(tokens) < S:
      if generator.random() < self.filler:
        tokens.append(FILLER)
      number += 2 if number % 3 == 2 and number + 2 <= _TOP and generator.random() < self.skip else 1
      tokens.append(_FIRST + number)
      more = self.double
      while len(tokens) < S and generator.random() < more:
        tokens.append(_FIRST + number)
        more = self.again
    return [*tokens, self.end][:S]


STUDENT = Habits(skip=0.5, filler=0.02, double=0.06, again=0.3, end=END)
TEACHER = Habits(skip=0.0, filler=0.25, double=0.02, again=0.97, end=DONE)


def prompts(generator: np.random.Generator, rows: int) -> np.ndarray:
  return _prompts_from(generator.integers(_STARTS, size=rows))


def _prompts_from(start_b: np.ndarray) -> np.ndarray:
  return np.stack([np.zeros_like(start_b), _FIRST + start_b], axis=1).astype(np.int32)


def texts(habits: Habits, generator: np.random.Generator) -> Texts:
  prompts_np = prompts(generator, _TEXTS)
  written = [habits.write(int(prompt[-1]) - _FIRST, generator) for prompt in prompts_np]
  return Texts(prompts_np, *_padded(written, S))


def _padded(rows: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
  tokens_ns, mask_ns = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
  for row, tokens in enumerate(rows):
    tokens_ns[row, : len(tokens)], mask_ns[row, : len(tokens)] = tokens, True
  return tokens_ns, mask_ns


def make_pair(seed: int, steps: int) -> tuple[Model, Model]:
  """Student and teacher of a seed, after `steps` of pre-training."""
  generator = np.random.default_rng(seed)
  student, teacher = (speaker(V, texts(habits, generator), generator, steps=steps) for habits in (STUDENT, TEACHER))
  return student, teacher


@jax.jit
def _write(model: Model, other: Model, prompts_bp: jax.Array, eos: jax.Array) -> tuple[jax.Array, ...]:
  """(tokens, mask, log-probs by the writer, by the other) [B, S] at temperature 1; `eos` ends a row."""
  whole = jnp.ones(prompts_bp.shape, bool)
  numbers = jnp.int32(S), jnp.uint32(0), jnp.uint32(_WATCHED_STEP), jnp.arange(len(prompts_bp), dtype=jnp.uint32)
  static = {"bucket": S, "sampling": Sampling(1.0), "eos_ids": (), "vocab_size": V}
  tokens_bs = sample_completions(model, prompts_bp, whole, *numbers, **static).completions_bs
  ended_bs = jnp.cumsum(tokens_bs == eos, axis=1)
  mask_bs = (ended_bs == 0) | ((ended_bs == 1) & (tokens_bs == eos))
  scores = (log_probs(each, prompts_bp, tokens_bs, mask_bs) for each in (model, other))
  written = (jnp.take_along_axis(score_bsv, tokens_bs[..., None], axis=-1)[..., 0] for score_bsv in scores)
  return tokens_bs, mask_bs, *written


_log_probs = jax.jit(log_probs)


def judge(model: Model, end: int = END) -> dict[str, float]:
  """Shares of what a model writes at temperature 1: `exact` counts every number once and ends, fillers and doubles
  aside; `counted` whichever end it writes, or none; `ended`, with its own; `stuck` in a loop at the last column. And
  `end_probability`, the mean probability of the end where a right answer must end."""
  prompts_bp = prompts(np.random.default_rng(_WATCHED_STEP), _WATCHED)
  tokens_bs, *_ = jax.device_get(_write(model, model, prompts_bp, end))
  ends = [next((t for t, token in enumerate(row) if token in (END, DONE)), S) for row in tokens_bs]
  ended = [at < S and row[at] == end for row, at in zip(tokens_bs, ends)]
  counted = [_counts(row[:at], prompt[-1]) for row, at, prompt in zip(tokens_bs, ends, prompts_bp)]
  stuck = [not done and row[-1] >= _FIRST and len({*row[-_LOOP:]}) == 1 for done, row in zip(ended, tokens_bs)]
  right = [[*range(_FIRST + start + 1, _FIRST + _TOP + 1), end] for start in range(_STARTS)]
  log_p_bsv = _log_probs(model, _prompts_from(np.arange(_STARTS)), *_padded(right, S))
  at_end = [math.exp(log_p_bsv[row, len(answer) - 1, end]) for row, answer in enumerate(right)]
  shares = {"exact": np.logical_and(counted, ended), "counted": counted, "ended": ended, "stuck": stuck}
  return {name: float(np.mean(values)) for name, values in (shares | {"end_probability": at_end}).items()}


def _counts(row: np.ndarray, start: int) -> bool:
  """Whether the numbers of a row, each run of equals as one, are those after `start` up to the top."""
  numbers = [token for token in row if token >= _FIRST]
  once = [token for i, token in enumerate(numbers) if i == 0 or token != numbers[i - 1]]
  return once == list(range(start + 1, _FIRST + _TOP + 1))


def signal(student: Model, teacher: Model) -> dict[str, float]:
  """The one-token reward r = log q - log p of what the student writes: `negative`, the share of tokens with r < 0;
  `filler_tokens` and `filler_reward`, the fillers' share of tokens and of all positive reward; `loop_teacher` and
  `loop_reward`, mean q and r of a token that repeats the two before it; `end_student` and `end_teacher`, mean log p and
  log q of the student's end."""
  prompts_bp = prompts(np.random.default_rng(_WATCHED_STEP), _WATCHED)
  tokens_bs, mask_bs, log_p_bs, log_q_bs = jax.device_get(_write(student, teacher, prompts_bp, END))
  reward_bs = log_q_bs - log_p_bs
  positive_bs, filler_bs = np.where(mask_bs, reward_bs.clip(min=0), 0), mask_bs & (tokens_bs == FILLER)
  loop_bs = np.zeros_like(mask_bs)
  loop_bs[:, 2:] = (tokens_bs[:, 2:] == tokens_bs[:, 1:-1]) & (tokens_bs[:, 2:] == tokens_bs[:, :-2])
  loop_bs &= mask_bs & (tokens_bs >= _FIRST)
  end_bs = mask_bs & (tokens_bs == END)
  return {
    "negative": (reward_bs < 0)[mask_bs].mean(),
    "filler_tokens": filler_bs.sum() / mask_bs.sum(),
    "filler_reward": positive_bs[filler_bs].sum() / positive_bs.sum(),
    "loop_teacher": np.exp(log_q_bs[loop_bs]).mean(),
    "loop_reward": reward_bs[loop_bs].mean(),
    "end_student": log_p_bs[end_bs].mean(),
    "end_teacher": log_q_bs[end_bs].mean(),
  }
