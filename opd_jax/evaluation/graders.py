r"""Is an answer right? The last thing that happens to a sampled completion in an evaluation.

    math      math-verify on the last \boxed{...}, on what follows "answer is", or on the last sentence
    gsm8k     the number after ####, in the last box, or the last one of the text
    exact     the same text, white space apart
    choice    the same letter or letters
    own       `register(name, function)`

What can be decided in a bounded number of steps is decided here. The rest goes to a worker process over pipes
(`grading_worker.py`) with a time limit. The worker is a plain subprocess, not multiprocessing's, which would import the
caller's script again: a notebook or a script without a main guard can call `grade`.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from opd_jax.errors import InputError, nearest
from opd_jax.evaluation import answers

SECONDS = 2.5  # of one answer in the worker: a call stays below 5 s also where it has to start the worker first
_START_SECONDS = 120.0
_GRACE_SECONDS = 30.0  # a worker that does not even report its fork's timeout by then is replaced

_log = logging.getLogger(__name__)


def check_kind(kind: str) -> None:
  """Raises InputError, the nearest named, where there is no grader called `kind`."""
  if kind not in _graders:
    raise InputError(f"unknown grader `{kind}`{nearest(kind, _graders)}; known: {', '.join(_graders)}")


def grade(kind: str, response: str, answer: str) -> bool:
  """Whether a response reaches the reference answer.

  Args:
    kind: `math`, `gsm8k`, `exact`, `choice`, or a registered name.
    response: all that the model wrote; what stands before a `</think>` is ignored.
    answer: the reference. An empty one is never reached.

  Returns:
    True where it does; False otherwise, also where grading it took too long, too much memory or failed.

  Raises:
    InputError: unknown kind, the nearest is named.
  """
  check_kind(kind)
  return bool(answer.strip()) and _graders[kind](response, answer)


def extract(kind: str, response: str) -> str:
  """What a response comes down to, for a vote among several: those that give the same text agree; "" has no vote.

  Args:
    kind: as for `grade`. For a registered grader it is what stands in the last box or after "answer is", and the whole
      text where there is neither.
    response: all that the model wrote; what stands before a `</think>` is ignored.

  Raises:
    InputError: unknown kind, the nearest is named.
  """
  check_kind(kind)
  return _EXTRACTORS.get(kind, _extract_any)(response)


def register(name: str, function: Callable[[str, str], bool]) -> None:
  """Makes `grade(name, response, answer)` call `function(response, answer)`.

  A function that can be imported by its name runs in the worker under the same limits as `math`. One of a notebook, of
  the running script itself, or inside another function cannot be imported elsewhere: it runs in this process, with no
  limit, and what it raises is raised.

  Raises:
    InputError: the name is one of the built-in kinds.
  """
  if name in _BUILT_IN:
    raise InputError(f"`{name}` is a built-in grader; register yours under another name")
  module, qualified = function.__module__, function.__qualname__
  importable = module != "__main__" and "<" not in qualified
  _graders[name] = functools.partial(_in_worker, f"{module}:{qualified}") if importable else function


def _grade_math(response: str, answer: str) -> bool:
  text, answer = _math_text(response), answers.joined_thousands(answers.in_latex(answer))
  box = answers.last_box(text)
  stated = box or answers.after_anchor(text)
  if stated and answers.without_unit(answer) == answer:
    stated = answers.without_unit(stated)
  if stated:
    ours, gold = answers.plain(stated), answers.plain(answer)
    if "=" not in gold:
      ours = ours.rpartition("=")[2]
    if ours == gold:
      return True
    numbers = answers.as_number(ours), answers.as_number(gold)
    if None not in numbers:
      return numbers[0] == numbers[1]
    if (same := answers.same_numeral(ours, gold)) is not None:
      return same
  prose = None if box else stated or answers.last_sentence(text)
  if answers.denies(stated or prose or "") and not answers.denies(answer):
    return False
  if prose and answers.ends_in(prose, answer) and not answers.hedges(prose):
    return True
  if stated and _in_worker("math", f"\\boxed{{{stated}}}", answer):
    return True
  return prose is not None and not answers.hedges(prose) and _in_worker("math", prose, answer)


def _math_text(response: str) -> str:
  return answers.joined_thousands(answers.in_latex(answers.after_thinking(response)))


def _extract_math(response: str) -> str:
  text = _math_text(response)
  stated = answers.last_box(text) or answers.after_anchor(text)
  return answers.canonical(stated or answers.last_formula(answers.last_sentence(text) or ""))


def _grade_gsm8k(response: str, answer: str) -> bool:
  gold = answers.last_number(answer.rpartition("####")[2])
  return gold is not None and _gsm8k_number(response) == gold


def _extract_gsm8k(response: str) -> str:
  number = _gsm8k_number(response)
  return "" if number is None else str(number)


def _gsm8k_number(response: str) -> Fraction | None:
  text = answers.after_thinking(response)
  if "####" in text:
    text = text.rpartition("####")[2].strip().split("\n", 1)[0]
  elif (box := answers.last_box(text)) is not None:
    text = box
  elif text.endswith("?"):  # the question repeated
    return None
  return answers.last_number(text)


def _grade_exact(response: str, answer: str) -> bool:
  return _extract_exact(response) == " ".join(answer.split())


def _extract_exact(response: str) -> str:
  return " ".join(answers.after_thinking(response).split())


def _grade_choice(response: str, answer: str) -> bool:
  gold = answers.letters(answer)
  return gold != "" and _extract_choice(response) == gold


def _extract_choice(response: str) -> str:
  text = answers.after_thinking(response)
  return answers.letters(answers.last_box(text) or answers.after_anchor(text) or text.rsplit("\n", 1)[-1])


def _extract_any(response: str) -> str:
  text = answers.after_thinking(response)
  stated = answers.last_box(text) or answers.after_anchor(text)
  return answers.canonical(stated) if stated else _extract_exact(text)


_BUILT_IN = {"math": _grade_math, "gsm8k": _grade_gsm8k, "exact": _grade_exact, "choice": _grade_choice}
_EXTRACTORS = {
  "math": _extract_math,
  "gsm8k": _extract_gsm8k,
  "exact": _extract_exact,
  "choice": _extract_choice,
}
_graders: dict[str, Callable[[str, str], bool]] = dict(_BUILT_IN)


class _Worker:
  """The grading process, started at its first answer, kept, and replaced where it dies or does not reply."""

  def __init__(self):
    self._lock = threading.Lock()
    self._process: subprocess.Popen | None = None
    self._owner = 0

  def ask(self, request: dict) -> dict:
    """The worker's reply to one request; a worker that was killed from outside is started once more."""
    with self._lock:
      for _ in range(2):
        try:
          if self._process is None or self._owner != os.getpid():  # a fork of the owner must not read its replies
            self._start()
          return self._exchange(request, request["seconds"] + _GRACE_SECONDS)
        except (BrokenPipeError, EOFError):
          self._stop()
        except BaseException:  # an interrupt between request and reply would leave the reply for the next answer
          self._stop()
          raise
      return {"right": False, "error": "the grading worker died twice on this answer"}

  def _start(self) -> None:
    self._process = subprocess.Popen(
      [sys.executable, str(Path(__file__).with_name("grading_worker.py"))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      start_new_session=True,  # Ctrl-C in the terminal is for the caller
    )
    self._owner = os.getpid()
    try:
      self._exchange(sys.path, _START_SECONDS)
    except (BrokenPipeError, EOFError) as error:
      self._stop()
      raise RuntimeError("the grading worker does not start: can this Python import math_verify?") from error

  def _exchange(self, request: object, seconds: float) -> dict:
    self._process.stdin.write(json.dumps(request).encode() + b"\n")
    self._process.stdin.flush()
    ready, _, _ = select.select([self._process.stdout], [], [], seconds)
    line = self._process.stdout.readline() if ready else b""
    if not line:
      raise EOFError
    return json.loads(line)

  def _stop(self) -> None:
    if self._process is not None and self._owner == os.getpid():
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own: the fork that grades goes too
      self._process.wait()
      with contextlib.suppress(BrokenPipeError):  # what was still to be sent to a dead worker
        self._process.stdin.close()
      self._process.stdout.close()
    self._process = None


_worker = _Worker()
atexit.register(_worker._stop)


def _in_worker(target: str, response: str, answer: str) -> bool:
  reply = _worker.ask({"target": target, "response": response, "answer": answer, "seconds": SECONDS})
  if reply["error"]:
    _log.warning("the grader %s failed and the answer counts as wrong: %s", target, reply["error"])
  return reply["right"]
