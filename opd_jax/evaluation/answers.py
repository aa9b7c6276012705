r"""From what a model wrote to the few characters that are its answer, before anything is compared.

Everything here runs in the training process on text that a model made up, so it is linear in the length of the text:
one pass, no nested repetition in a pattern, numbers cut off before Python has to convert them.

    "... so x = 4.</think> The answer is \boxed{\frac{8}{2}}."   ->   \frac{8}{2}
"""

import re
from fractions import Fraction

MAX_ANSWER = 1000  # characters; nothing longer is an answer
_MAX_NUMBER = 60
_TAIL = 400  # characters from the end in which an answer without a box is looked for
_BOX_TRIES = 4
_UNIT_TAIL = 30  # characters in which a unit is looked for

_BOX = re.compile(r"\\f?boxed\s?\{")
_ANCHOR = re.compile(r"(?i)\banswer\b(?: is|\*\*:|:\*\*|:| =)+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_REQUEST = re.compile(
  r"(?i)(?:now |then |please |and )*(?:find|evaluate|simplify|compute|calculate|determine|write|factor|express|solve|"
  r"convert|give|enter|round|expand|reason|put|remember|what|how|which)\b|.*\?$"
)
_DENIAL = re.compile(r"(?i)\b(?:not|cannot|than|wrong|incorrect)\b|n't\b|\\(?:neq?|not)(?![a-z])")
_HEDGE = re.compile(r"(?i)\b(?:n?or|between|either)\b")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<![\w.])-?\.\d+")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_FRACTION = re.compile(r"(-?)(?:\\frac\{(\d{1,30})\}\{(\d{1,30})\}|(\d{1,30})/(\d{1,30}))")
_FORMULA = re.compile(r"\$([^$]+)\$|\\\(([^$]*?)\\\)")
_NUMERAL = re.compile(r"(\d+)(?:_\{?(\d+)\}?)?")
_LETTERS = re.compile(
  r"\W{0,4}(?:(?i:option|choice)\W{1,3})?([A-Z]{1,6}\)?(?:(?:, ?and |, ?or |, ?| and | or |/)\(?[A-Z]\)?)*)(?![\w'])"
)
_UNIT = re.compile(
  r"(?:\s|\\[ ,;])(?:square |cubic )?(?:[ckm]?m|in|ft|kg|inch(?:es)?|f(?:ee|oo)t|units?|yards?|miles?|"
  r"(?:centi|kilo)?meters?|(?:kilo)?grams?|degrees?|dollars?|cents?|percent|seconds?|minutes?|hours?|days?|years?)"
  r"(?: ?\^\{?[23]\}?)?$"
)
_ROOT = re.compile(r"√\s?(?:\(([^()]{1,99})\)|(\d+(?:\.\d+)?|[A-Za-z]))")
# The space ends a command: "2πr" is no "\\pir".
_SIGNS = str.maketrans(
  {"−": "-", "²": "^2", "³": "^3", "°": "^\\circ "}
  | {"π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "φ": "\\phi ", "ω": "\\omega ", "∞": "\\infty "}
  | {"·": "\\cdot ", "×": "\\times ", "÷": "\\div ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in "}
  | {"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "√": "\\sqrt "}
)
_WORDS, _WORD = re.compile(r"\(?[A-Za-z]+(?: [A-Za-z]+)*\)?"), re.compile("[A-Za-z]+")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\! ?|\{,\}|\\,)(?=\d{3})")
_SPACED = re.compile(r"\\(?:left|right|displaystyle|[!,;: ])|~|(?<!\d)\s+|\s+(?!\d)")
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf|operatorname)\s?\{([^{}]*)\}")


def after_thinking(response: str) -> str:
  """What follows the last `</think>`; all of it where there is none."""
  return response.rpartition("</think>")[2].strip()


def last_box(text: str) -> str | None:
  r"""The contents of the last \boxed{...} that has any, with its braces balanced; None where there is none.

  A prompt that is repeated ("put your answer within \boxed{}") has an empty one, an answer cut off has an open one.
  """
  starts = [match.end() for match in _BOX.finditer(text)]
  for start in reversed(starts[-_BOX_TRIES:]):
    depth = 1
    for end in range(start, min(len(text), start + MAX_ANSWER)):
      depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
      if depth == 0:
        if text[start:end].strip():
          return text[start:end].strip()
        break
  return None


def after_anchor(text: str) -> str | None:
  """What follows an "answer is" or "answer:" near the end, to the end of its sentence; None where there is none."""
  tail = text[-_TAIL:]
  end = max((match.end() for match in _ANCHOR.finditer(tail)), default=None)
  if end is None:
    return None
  line = tail[end:].lstrip(" :*\n").split("\n", 1)[0]
  sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
  return sentence.strip(" *").rstrip(".") or None


def last_sentence(text: str) -> str | None:
  """The last sentence near the end; None where it asks for something: who ends on a request repeats the prompt."""
  sentence = _SENTENCE_END.split(" ".join(text[-_TAIL:].split()))[-1]
  return None if not sentence or _REQUEST.match(sentence) else sentence


def last_formula(sentence: str) -> str:
  """The last formula between dollar signs or `\\(` and `\\)`, else the last number, else the sentence."""
  formulas = [match[1] or match[2] for match in _FORMULA.finditer(sentence[-_TAIL:])]
  if formulas:
    return formulas[-1]
  number = last_number(sentence)
  return sentence if number is None else str(number)


def denies(text: str) -> bool:
  """Whether a text names a number in order to exclude it: "not 2", "more than 2"."""
  return bool(_DENIAL.search(text))


def hedges(sentence: str) -> bool:
  """Whether a sentence leaves its answer open: "2 or 3"."""
  return bool(_HEDGE.search(sentence))


def ends_in(sentence: str, answer: str) -> bool:
  """Whether a sentence ends in the words that an answer is: "so it must be Evelyn." for `\\text{Evelyn}`."""
  wanted = _WRAPPED.sub(r"\1", answer).strip()
  if not _WORDS.fullmatch(wanted):
    return False
  wanted, words = (_WORD.findall(_WRAPPED.sub(r" \1 ", text)) for text in (wanted, sentence))
  words = words[-len(wanted) :]
  return words == wanted or [word.lower() for word in words] == [word.lower() for word in wanted if len(word) > 1]


def without_unit(answer: str) -> str:
  """An answer without a unit of everyday life at its end, in plain letters: `12\\pi cm^2`, `5 square feet`."""
  head, tail = answer[:-_UNIT_TAIL], answer[-_UNIT_TAIL:]
  return head + _UNIT.sub("", tail)


def in_latex(text: str) -> str:
  """A text whose signs of mathematics are LaTeX: `2π√3` is `2\\pi \\sqrt{3}`."""
  text = _ROOT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text)
  return text.translate(_SIGNS)


def joined_thousands(text: str) -> str:
  """Without LaTeX's thousands separators (`10,\\!080`, `10{,}080`), which math-verify reads as the comma of a list."""
  return _THOUSANDS.sub("", text)


def plain(text: str) -> str:
  """An answer without what carries no meaning: spaces, dollar signs, text wrappers, degree signs, variants of frac."""
  text = _WRAPPED.sub(r" \1 ", text.strip())
  text = " ".join(text.split()).replace("\\$", "").replace("$", "").replace("\\%", "%").replace("−", "-")
  for degrees in ("^{\\circ}", "^\\circ", "°"):
    text = text.replace(degrees, "")
  text = _SPACED.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
  text = text.rstrip(".")
  return text.lower() if text.isalpha() and len(text) > 1 else text


def as_number(text: str) -> Fraction | None:
  """The value of a plain decimal number ("1,234.50", "-7", ".5"); None for anything else or more than 60 characters."""
  if len(text) > _MAX_NUMBER or not any(char.isdigit() for char in text) or not _PLAIN_NUMBER.fullmatch(text):
    return None
  return Fraction(text.replace(",", ""))


def canonical(text: str) -> str:
  """An answer such that the same number is the same text: `x = 0.50`, `\\dfrac{1}{2}` and `1/2` are all "1/2".

  Other answers are compared as `plain` writes them: `2x` and `x + x` are two.
  """
  text = plain(text).rpartition("=")[2]
  fraction = _FRACTION.fullmatch(text)
  if fraction:
    sign, *parts = fraction.groups()
    over, under = (int(part) for part in parts if part)
    return str(Fraction(-over if sign else over, under)) if under else text
  value = as_number(text)
  return text if value is None else str(value)


def same_numeral(ours: str, reference: str) -> bool | None:
  """Whether two numerals with a base ("204_5", "204_{5}") agree; None where neither has one.

  An answer may leave out the base that the question named; math-verify does not look at it at all.
  """
  mine, theirs = _NUMERAL.fullmatch(ours), _NUMERAL.fullmatch(reference)
  if not (mine and theirs) or not (mine[2] or theirs[2]):
    return None
  return mine[1] == theirs[1] and (mine[2] or theirs[2]) == (theirs[2] or "10")


def last_number(text: str) -> Fraction | None:
  """The last number in a text, dollar signs and thousands separators allowed; None where there is none."""
  text = text.replace("\\!", "").replace("\\$", "").replace("$", "").replace("−", "-").replace("{,}", ",")
  found = None
  for match in _NUMBER.finditer(text):
    found = match[0]
  return None if found is None else as_number(found.rstrip(","))


def letters(text: str) -> str:
  """The choices that an answer starts with, sorted: "(B)", "B: Paris", "C and A"; empty where it starts otherwise."""
  match = _LETTERS.match(_WRAPPED.sub(r"\1", text.strip()))
  return "".join(sorted(char for char in match[1] if char.isupper())) if match else ""
