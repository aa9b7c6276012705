"""What the user did wrong, said in one line.

Everything that a person can mend (a path, a field, a file's contents, a mesh that does not fit) is raised as
`InputError`; the entry points print it as one line and exit with status 2. A run whose numbers went wrong raises
`TrainingError`: one line, and status 1. Anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input. The message is one line: what is wrong, and what to do about it."""

  def __init__(self, message: str):
    super().__init__(" ".join(str(message).split()))


class TrainingError(RuntimeError):
  """A run that cannot go on, though its input was good. The message is one line: what happened, and where."""


def nearest(name: str, known: Iterable[str]) -> str:
  """' (did you mean `x`?)' for the known name closest to `name`, or '' where none is close.

  An abbreviation counts as close to what it shortens: `lr` to `learning_rate`.
  """
  known = list(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  close += [each for each in known if name[:1] == each[:1] and _abbreviates(name, each)]
  return f" (did you mean `{close[0]}`?)" if close else ""


def _abbreviates(short: str, whole: str) -> bool:
  """Whether the letters of `short` come in this order in `whole`."""
  letters = iter(whole)
  return all(letter in letters for letter in short)
