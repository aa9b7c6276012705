"""What the user did wrong, said in one line.

Everything that a person can mend (a path, a field, a file's contents, a mesh that does not fit) is raised as
`InputError`; the entry points print it as one line and exit with status 2. A run whose numbers went wrong raises
`TrainingError`: one line, and status 1. Anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

_LONGEST = 2000  # characters of a message, which may quote what a file holds
_LONGEST_NAME, _MOST_NAMES = 100, 1000  # that are compared


class InputError(ValueError):
  """Bad input. The message is one line of printable characters: what is wrong, and what to do about it."""

  def __init__(self, message: str):
    super().__init__(_one_line(str(message)))


class TrainingError(RuntimeError):
  """A run that cannot go on, though its input was good. The message is one line: what happened, and where."""


def nearest(name: str, known: Iterable[str]) -> str:
  """' (did you mean `x`?)' for the known name closest to `name`, or '' where none is close.

  An abbreviation counts as close to what it shortens: `lr` to `learning_rate`.
  """
  # Of a file there may be any number of names, of any length: comparing them all could take for ever.
  known = [each for each in known if len(each) <= _LONGEST_NAME][:_MOST_NAMES] if len(name) <= _LONGEST_NAME else []
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  close += [each for each in known if name[:1] == each[:1] and _abbreviates(name, each)]
  return f" (did you mean `{close[0]}`?)" if close else ""


def _abbreviates(short: str, whole: str) -> bool:
  """Whether the letters of `short` come in this order in `whole`."""
  letters = iter(whole)
  return all(letter in letters for letter in short)


def _one_line(text: str) -> str:
  """`text` in one line, its middle left out where it is long. What no terminal should get (escapes, signs that turn the
  direction of writing, halves of a character) is spelled out."""
  if len(text) > _LONGEST:
    text = f"{text[: 3 * _LONGEST // 4]} [...] {text[-_LONGEST // 4 :]}"
  line = " ".join(text.split())
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
