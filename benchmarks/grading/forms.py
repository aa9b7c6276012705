r"""How models write an answer that is right: one function a form, from the reference answer to a response.

A function gives None for an answer that its form does not fit, such as `decimal` for a matrix.
"""

import re
from collections.abc import Callable

Form = Callable[[str], str | None]

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_FRACTION = re.compile(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}")
_SIGNS = {"\\pi": "π", "\\infty": "∞", "\\cdot": "·", "\\le": "≤", "\\cup": "∪", "\\pm": "±", "\\in": "∈"}


def _fits(pattern: re.Pattern | str, write: Form) -> Form:
  """The form for answers that match wholly; None for the others."""
  return lambda answer: write(answer) if re.fullmatch(pattern, answer) else None


def _changed(change: Callable[[str], str]) -> Form:
  """A box of the answer written differently; None where that changes nothing."""
  return lambda answer: f"\\boxed{{{change(answer)}}}" if change(answer) != answer else None


def _slash(answer: str) -> str:
  sign, over, under = _FRACTION.fullmatch(answer).groups()
  return f"The answer is {sign}{over}/{under}."


def _decimal(answer: str) -> str:
  sign, over, under = _FRACTION.fullmatch(answer).groups()
  return f"\\boxed{{{sign}{int(over) / int(under)}}}"


def _in_signs(answer: str) -> str:
  for latex, sign in _SIGNS.items():
    answer = re.sub(rf"{re.escape(latex)}(?![a-z])", sign, answer)
  return re.sub(r"\\sqrt\{(\w+)\}", r"√\1", answer).replace("^2", "²").replace("^3", "³")


MATH: dict[str, Form] = {
  "boxed": lambda a: f"So we get\n\\[ \\boxed{{{a}}} \\]",
  "boxed in a sentence": lambda a: f"Thus the answer is $\\boxed{{{a}}}$.",
  "boxed between dollars": lambda a: f"$$\n\\boxed{{{a}}}\n$$",
  "dollars in the box": lambda a: f"The answer is \\boxed{{${a}$}}.",
  "boxed, then a check": lambda a: f"\\boxed{{{a}}}\n\nLet us check it once more with 12 and 7: it holds.",
  "boxed under a heading": lambda a: f"### Step 3\nAdd 4 to both.\n\n**Final Answer**\n\n\\[\n\\boxed{{{a}}}\n\\]\n",
  "after thinking": lambda a: f"<think>perhaps \\boxed{{99}}</think>It is \\boxed{{{a}}}.",
  "final answer": lambda a: f"Work.\n\nThe final answer is ${a}$.",
  "final answer, Minerva": lambda a: f"Work.\nFinal Answer: The final answer is ${a}$. I hope it is correct.",
  "bold answer": lambda a: f"Work.\n\n**Answer:** ${a}$",
  "answer in brackets": lambda a: f"Work.\n\nTherefore, the answer is \\({a}\\).",
  "answer on its own line": lambda a: f"Work.\n\nAnswer: {a}",
  "last sentence": lambda a: f"We added the two parts. Therefore the value is ${a}$.",
  "dfrac": _changed(lambda a: a.replace("\\frac", "\\dfrac")),
  "left and right": _changed(lambda a: a.replace("(", "\\left(").replace(")", "\\right)")),
  "other spaces": _changed(lambda a: a.replace(", ", ",") if ", " in a else a.replace(",", ", ")),
  "signs": _changed(_in_signs),
  "in words": _fits(r"\\text\{.*\}|[A-Za-z]{2,}", lambda a: f"So it must be {re.sub(r'.text|[{}]', '', a)}."),
  "units": _fits(rf"[\d.,]+|{_FRACTION.pattern}", lambda a: f"\\boxed{{{a} \\text{{ cm}}}}"),
  "units in letters": _fits(rf"[\d.,]+|\d*\\pi|{_FRACTION.pattern}", lambda a: f"The answer is {a} square cm."),
  "slash": _fits(_FRACTION, _slash),
  "decimal": _fits(_FRACTION, _decimal),
  "assignment": _fits(r"[-\d.]+|.*frac.*", lambda a: f"\\boxed{{x = {a}}}"),
  "words around a number": _fits(r"\d+(\.\d+)?", lambda a: f"So there are {a} of them."),
  "thousands": _fits(r"\d{4,}", lambda a: f"The answer is {int(a):,}."),
  "minus sign": _fits(r"-\d.*", lambda a: f"\\boxed{{−{a[1:]}}}"),
}

# Of GSM8K, whose answers are whole numbers.
GSM8K: dict[str, Form] = {
  "number": lambda a: a,
  "####": lambda a: f"First 12, then 7.\n#### {int(a):,}",
  "boxed": lambda a: f"That makes \\(\\boxed{{{a}}}\\).",
  "dollars": lambda a: f"So she has ${int(a):,} left.",
  "cents": lambda a: f"It is **${a}.00**.",
  "units": lambda a: f"He needs {a} minutes for all 12 of them.\n\nThe answer is {a} minutes.",
  "bold": lambda a: f"3 + 4 = 7.\n\n**Answer: {int(a):,}**",
  "after thinking": lambda a: f"<think>99?</think>The answer is {a}.",
}
