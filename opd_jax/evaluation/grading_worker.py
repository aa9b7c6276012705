"""The process in which answers are graded that somebody else's code has to look at: math-verify, a user's own grader.

Started by `graders.py` as a plain script, so that nothing of the caller's own script is run again. It imports what is
heavy once and forks a child that grades one answer after the other. Whatever an answer makes its grader do (loop, fill
the memory, crash) happens in the child; it is killed when the time is up, and the next answer gets a fresh fork, which
takes milliseconds where a new process would import sympy again.

    caller -- one JSON line per answer --> worker -- the same line --> child: grade
           <------------------------------        <-----------------

Requests:  {"target": "math" | "module:function", "response": ..., "answer": ..., "seconds": ...}
Replies:   {"right": true | false, "error": null | "..."}
The first line in is the caller's `sys.path`, the first line out says that the worker is ready.
"""

import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

Grader = Callable[[str, str], bool]

_MEMORY_BYTES = 2 << 30  # address space of the child; 10^10^10 would take the machine's


def grade_math(response: str, answer: str) -> bool:
  """Whether math-verify finds the two equal. Its own timeouts are alarms, which a big integer does not hear."""
  from math_verify import parse, verify

  gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
  return verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None)


def _load(target: str) -> Grader:
  module, _, name = target.partition(":")
  function = importlib.import_module(module)
  for part in name.split("."):
    function = getattr(function, part)
  return function


class _Child:
  """One fork of this process and the two pipes to it."""

  def __init__(self, graders: dict[str, Grader]):
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    self._pid = os.fork()
    if self._pid == 0:
      os.close(request_write)
      os.close(reply_read)
      _serve(graders, os.fdopen(request_read), os.fdopen(reply_write, "w"))
      os._exit(0)
    os.close(request_read)
    os.close(reply_write)
    self._requests, self._replies = os.fdopen(request_write, "w"), os.fdopen(reply_read)

  def ask(self, line: str, seconds: float) -> dict | None:
    """The child's reply; None where it died or the time is up: it is of no more use then."""
    self._requests.write(line)
    self._requests.flush()
    ready, _, _ = select.select([self._replies], [], [], seconds)
    reply = self._replies.readline() if ready else ""
    return json.loads(reply) if reply else None

  def kill(self) -> None:
    os.kill(self._pid, signal.SIGKILL)
    os.waitpid(self._pid, 0)
    self._requests.close()
    self._replies.close()


def _serve(graders: dict[str, Grader], requests: TextIO, replies: TextIO) -> None:
  """The child: grades until the pipe is closed."""
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
  for line in requests:
    request = json.loads(line)
    signal.alarm(math.ceil(request["seconds"]) + 1)  # ends a fork whose worker was killed and can no longer end it
    try:
      right = graders[request["target"]](request["response"], request["answer"])
      reply = {"right": bool(right), "error": None}
    except BaseException as error:  # an isolated child: a grader's SystemExit, too, is a failed answer and no more
      reply = {"right": False, "error": f"{type(error).__name__}: {error}"[:300]}
    signal.alarm(0)
    print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
  """Serves until the caller closes the pipe, also by dying."""
  requests, replies = sys.stdin, os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what a grader prints must not be taken for a reply
  sys.path[:] = json.loads(requests.readline())
  # One answer of each sort now, so that every fork starts with math-verify's grammars and sympy's caches warm.
  for answer in ("\\frac{1}{2}", "x^2+1", "(1,2]"):
    grade_math(f"\\boxed{{{answer}}}", answer)
  gc.freeze()  # a collection in the child would write to, and so copy, every page that it shares with this process
  print(json.dumps({"ready": True}), file=replies, flush=True)
  graders, child = {"math": grade_math}, None
  for line in requests:
    request = json.loads(line)
    reply = None
    if request["target"] not in graders:
      # Imported here, not in the child: an import takes longer than an answer may.
      try:
        graders[request["target"]] = _load(request["target"])
      except Exception as error:  # somebody else's module: the worker outlives whatever its import does
        reply = {"right": False, "error": f"cannot import {request['target']}: {type(error).__name__}: {error}"[:300]}
      if child:
        child.kill()
        child = None
    if reply is None:
      child = child or _Child(graders)
      reply = child.ask(line, request["seconds"])
      if reply is None or reply["error"]:  # also after an error: memory may be what it ran out of
        child.kill()
        child = None
    # No reply is no fault of the grader's: the answer was too much for it.
    print(json.dumps(reply or {"right": False, "error": None}), file=replies, flush=True)
  if child:
    child.kill()


if __name__ == "__main__":
  main()
