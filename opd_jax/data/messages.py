"""A prompt before it is tokens: text or chat messages, and what a run puts around them.

row       "How many eggs are left?"
system    system: Be brief.   user: How many eggs are left?
suffix    system: Be brief.   user: How many eggs are left? Think step by step.
"""

import dataclasses
import math
from typing import Any

from opd_jax.config import Data
from opd_jax.data.rows import kind_of, look_up
from opd_jax.errors import InputError

Prompt = str | list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Framing:
  """What a run makes of a prompt before the tokenizer sees it, and how its chat template is used.

  Attributes:
    chat: use the tokenizer's chat template where it has one. Plain text is then one user message.
    system: text of a system message before each prompt that does not begin with one; "" for none.
    suffix: added to the last message, or to the text, as it stands; "" for none.
    thinking: "on" or "off" sets the template's `enable_thinking`; "" leaves it to the template.
  """

  chat: bool = True
  system: str = ""
  suffix: str = ""
  thinking: str = ""

  @classmethod
  def of(cls, data: Data) -> "Framing":
    return cls(data.chat, data.system, data.suffix, data.thinking)

  def around(self, prompt: Prompt) -> Prompt:
    """The prompt with system message and suffix; text stays text where there is no system message."""
    if isinstance(prompt, str) and not self.system:
      return prompt + self.suffix
    *before, last = to_messages(prompt)
    messages = [*before, last | {"content": last["content"] + self.suffix}]
    if self.system and messages[0]["role"] != "system":
      messages = [{"role": "system", "content": self.system}, *messages]
    return messages


PLAIN = Framing()  # the prompt as the row has it, through the chat template


def to_messages(prompt: Prompt) -> list[dict[str, str]]:
  return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt: Prompt) -> str:
  """A prompt as plain text: itself, or the contents of its messages joined by blank lines."""
  return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def prompt_in(row: dict, field: str, place: str) -> Prompt:
  """The prompt at a dotted path of a row. Raises InputError where it is missing or none."""
  prompt = look_up(row, field, place)
  if not isinstance(prompt, str) and not (isinstance(prompt, list) and prompt and all(map(_is_message, prompt))):
    raise InputError(
      f"{place}: `{field}` must be text or a list of chat messages with text in `role` and `content`, "
      f"not {kind_of(prompt)}"
    )
  _check_characters(prompt_text(prompt), field, place)
  return prompt


def answer_in(row: dict, field: str, place: str) -> str:
  """The answer at a dotted path of a row, a number as text. Raises InputError where it is missing or neither."""
  answer = look_up(row, field, place)
  if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
    raise InputError(f"{place}: `{field}` must be text or a number, not {kind_of(answer)}")
  if isinstance(answer, float) and not math.isfinite(answer):
    raise InputError(f"{place}: `{field}` is {answer}, which is no answer (a missing one in a table?): drop the row")
  _check_characters(str(answer), field, place)
  return str(answer)


def _check_characters(text: str, field: str, place: str) -> None:
  """Raises InputError for half a surrogate pair, which JSON can spell: no tokenizer takes it, and no file."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise InputError(f"{place}: `{field}` holds a broken character ({error.reason}); mend or drop the row") from error


def _is_message(message: Any) -> bool:
  return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
