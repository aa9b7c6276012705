"""`name=value` behind a semicolon: how `data.mixture` and `eval.sets` say what differs for one of several files."""

from collections.abc import Iterable, Sequence

from opd_jax.errors import InputError, nearest


def read_options(texts: Iterable[str], known: Sequence[str], owner: str) -> dict[str, str]:
  """The options of some texts, blank ones left out. Values keep the white space that they have.

  Args:
    texts: `name=value` each.
    known: names that there are.
    owner: who has them, for the error.

  Raises InputError for any other name, the nearest named.
  """
  options = {}
  for text in filter(str.strip, texts):
    name, _, value = text.partition("=")
    name = name.strip()
    if name not in known:
      raise InputError(f"{owner} has the option {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    options[name] = value
  return options
