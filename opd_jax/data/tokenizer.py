"""The first thing that happens to a prompt: its text becomes token ids, through the model's own chat template.

Tokenizer and template come from transformers, read from the model's folder or from the hub; no code of a checkpoint is
ever run. What the sampler has to know about the vocabulary is settled here too: how many ids exist (a model's head is
often padded beyond them), which ids end an answer, and whether student and teacher mean the same thing by each id.
"""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from opd_jax.data.messages import PLAIN, Framing, Prompt, prompt_text, to_messages
from opd_jax.errors import InputError
from opd_jax.hub import model_folder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_CONFIG_FILES = ("generation_config.json", "config.json")
_SHOWN_DIFFERENCES = 3
_MOST_IDS = 2**31  # ids are int32
_TEMPLATE_SECONDS = 20.0  # in which a chat template must have made one message into text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A transformers tokenizer with what generation needs to know about it.

  Attributes:
    hf: the transformers tokenizer itself.
    size: number of token ids, added tokens included; ids >= size have no text and are never sampled.
  """

  hf: Any
  size: int

  def encode_prompt(self, prompt: Prompt, framing: Framing = PLAIN) -> list[int]:
    """Token ids of a prompt, ready for the model to continue.

    Args:
      prompt: plain text, or chat messages `{"role": ..., "content": ...}`.
      framing: what is put around it, and how the tokenizer's chat template is used.

    Returns:
      The ids. With the template they end where the assistant's turn begins; without one they are the text (messages
      joined by blank lines) with the special tokens that the tokenizer itself adds.

    Raises:
      InputError: the template refuses the messages.
    """
    prompt = framing.around(prompt)
    if not self._templated(framing):
      return self._ids(prompt_text(prompt))
    return self._templated_ids(to_messages(prompt), framing, begin_turn=True)

  def encode_answer(self, prompt: Prompt, answer: str, stop_ids: Sequence[int], framing: Framing = PLAIN) -> list[int]:
    """Token ids of an answer to a prompt as if the model had written it, with the id that ends it.

        encode_prompt    <|im_start|> user ... <|im_start|> assistant |
        encode_answer                                                 | 4 2 <|im_end|>      (a template's "\\n" is cut)

    Args:
      prompt, framing: as in `encode_prompt`, whose ids come before these.
      answer: plain text.
      stop_ids: ids that end an answer, at least one; nothing follows the first of them. Where the template, or the text
        without one, has none, the tokenizer's end-of-sequence id is added, or the first of these.
    """
    ids = None
    if self._templated(framing):
      begun = self.encode_prompt(prompt, framing)
      turns = [*to_messages(framing.around(prompt)), {"role": "assistant", "content": answer}]
      whole = self._templated_ids(turns, framing, begin_turn=False)
      if whole[: len(begun)] == begun:  # some templates open a turn with what they leave out of a finished one
        ids = whole[len(begun) :]
    if ids is None:
      ids = self._ids(answer, add_special_tokens=False)
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    if end is not None:
      return ids[: end + 1]
    eos = self.hf.eos_token_id
    return [*ids, eos if eos in stop_ids else stop_ids[0]]

  def check_thinking(self, framing: Framing) -> None:
    """Raises InputError where `framing` sets thinking and no template of this tokenizer reads it."""
    if framing.thinking and not (self._templated(framing) and "enable_thinking" in str(self.hf.chat_template)):
      raise InputError(
        f"config.data.thinking is {framing.thinking!r}, but no chat template of {self.hf.name_or_path} that reads "
        "enable_thinking is used: leave it empty"
      )

  def check_template(self) -> None:
    """Raises InputError where there is no chat template, which `data.teacher_template=own` asks of the teacher."""
    if not self.hf.chat_template:
      raise InputError(
        f"config.data.teacher_template is 'own', but {self.hf.name_or_path} has no chat template: leave it empty, or "
        "give it one"
      )

  def _templated(self, framing: Framing) -> bool:
    return bool(framing.chat and self.hf.chat_template)

  def _ids(self, text: str, **options: bool) -> list[int]:
    with self._blamed("does not take this text"):
      ids = self.hf(text, verbose=False, **options)["input_ids"]
    return self._known(ids)

  def _known(self, ids: list[int]) -> list[int]:
    """The ids; InputError for one that the vocabulary lacks: files can name any number for a special token."""
    largest = max(ids, default=0)
    if largest >= self.size:
      raise InputError(
        f"the tokenizer of {self.hf.name_or_path} makes the id {largest}, and its vocabulary has {self.size}: mend its "
        "special tokens"
      )
    return ids

  @contextlib.contextmanager
  def _blamed(self, what: str, part: str = "tokenizer", advice: str = "mend it") -> Iterator[None]:
    """What a tokenizer's files make it raise becomes InputError, panics of its Rust, which are no `Exception`, too."""
    try:
      yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
      raise
    except BaseException as error:
      reason = f"{error}" or type(error).__name__
      raise InputError(f"the {part} of {self.hf.name_or_path} {what}: {reason}; {advice}") from error

  def _templated_ids(self, messages: list[dict[str, str]], framing: Framing, begin_turn: bool) -> list[int]:
    switch = {"enable_thinking": framing.thinking == "on"} if framing.thinking else {}
    advice = "change the messages, or do without the template"
    with self._blamed("does not take this prompt", "chat template", advice):  # a template is somebody's program
      ids = self.hf.apply_chat_template(
        messages, add_generation_prompt=begin_turn, tokenize=True, return_dict=False, **switch
      )
    return self._known(ids)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens left out, spaces untouched."""
    return self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """The text of each token of a byte-level tokenizer; of several that make up one character only the last has it.

    Their concatenation is `decode(ids)` but for special tokens, which are written out here, and bytes that are no text.
    """
    pieces, open_ids = [], []
    special = set(self.hf.all_special_ids)
    for token in ids:
      open_ids.append(token)
      text = self.hf.decode([token]) if token in special else self.decode(open_ids)
      # A character that has begun decodes to U+FFFD; none has more than four bytes.
      whole = not text.endswith("\ufffd") or len(open_ids) == 4
      pieces.append(text if whole else "")
      open_ids = [] if whole else open_ids
    return pieces

  def single_ids(self, texts: Sequence[str], field: str) -> tuple[int, ...]:
    """The id of each text, which must be one token: a special token, or what the text alone is encoded to.

    Raises InputError that names `field` for a text of several tokens.
    """
    ids = []
    for text in texts:
      known = self.hf.get_vocab().get(text)
      encoded = [known] if known is not None else self._ids(text, add_special_tokens=False)
      if len(encoded) != 1:
        pieces = ", ".join(repr(self.hf.decode([token])) for token in encoded)
        raise InputError(f"{field} has {text!r}, which is {len(encoded)} tokens ({pieces}): give single tokens")
      ids += encoded
    return tuple(ids)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
  """Reads the tokenizer of a Hugging Face folder or of a hub id `org/name[@revision]`.

  Raises:
    InputError: no such folder, no tokenizer in it, a damaged file, or a hub that cannot be reached.
  """
  # transformers advises at import that no torch was found. Here that is the normal state.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import AutoTokenizer
  from transformers.utils import logging

  folder = model_folder(path, weights=False)
  if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
    raise InputError(f"no tokenizer in {path}: it has neither {' nor '.join(_TOKENIZER_FILES)}")
  verbosity = logging.get_verbosity()
  logging.set_verbosity_error()  # it looks at config.json too, and has its own opinion of what is ours to judge
  try:
    hf = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
  except Exception as error:  # the tokenizers library raises bare `Exception` for a damaged tokenizer.json
    reason = next(iter(str(error).strip().splitlines()), "no reason given")
    raise InputError(f"cannot read the tokenizer of {path}: {type(error).__name__}: {reason}") from error
  finally:
    logging.set_verbosity(verbosity)
  vocabulary = hf.get_vocab()
  if not vocabulary:
    raise InputError(f"the tokenizer of {path} has an empty vocabulary; copy the model's tokenizer files there again")
  if hf.chat_template:
    _check_template_ends(hf, path)
  return Tokenizer(hf=hf, size=max(vocabulary.values()) + 1)


def _check_template_ends(hf: Any, path: str | os.PathLike) -> None:
  """Raises InputError where the chat template does not come to an end: it is a program, with loops in loops.

  A thread cannot be stopped, but it can be left behind. Whether the template takes messages at all is not asked here.
  """

  def render() -> None:
    with contextlib.suppress(Exception):
      hf.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False)

  thread = threading.Thread(target=render, daemon=True)
  thread.start()
  thread.join(_TEMPLATE_SECONDS)
  if thread.is_alive():
    raise InputError(f"the chat template of {path} does not end within {_TEMPLATE_SECONDS:.0f} seconds: mend it")


def stop_ids(path: str | os.PathLike, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Every id that ends an answer: the union of generation_config.json, config.json and the tokenizer, sorted.

  The three often disagree: the id that ends a turn of an instruct model is often only in the generation config.

  Raises:
    InputError: a file that is no JSON object, or an `eos_token_id` that is no id.
  """
  folder = model_folder(path, weights=False)
  ids = set() if tokenizer.hf.eos_token_id is None else {tokenizer.hf.eos_token_id}
  for name in _CONFIG_FILES:
    file = folder / name
    if not file.is_file():
      continue
    try:
      declared = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError, RecursionError) as error:
      raise InputError(f"{file} is not a JSON object: {error}") from error
    declared = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(type(token) is int and 0 <= token < _MOST_IDS for token in declared):
      raise InputError(f"{file}: eos_token_id must be an id or a list of ids, not {declared}")
    ids.update(declared)
  return tuple(sorted(ids))


def check_pair(student: Tokenizer, other: Tokenizer, role: str = "teacher") -> None:
  """Refuses a model that means another text by the same id: every divergence compares the two id by id.

  `role`: what the other model is to the student. Only tokenizers count; heads padded to different widths are no
  difference.

  Raises:
    InputError: names the first ids that differ, and the sizes where they do.
  """
  texts = [{token: text for text, token in each.hf.get_vocab().items()} for each in (student, other)]
  differing = sorted(i for i in texts[0].keys() | texts[1].keys() if texts[0].get(i) != texts[1].get(i))
  if not differing:
    return
  shown = ", ".join(
    f"id {i}: " + " / ".join(repr(text[i]) if i in text else "none" for text in texts)
    for i in differing[:_SHOWN_DIFFERENCES]
  )
  sizes = f" (sizes {student.size} / {other.size})" if student.size != other.size else ""
  raise InputError(
    f"student and {role} tokenizers differ in {len(differing)} ids{sizes}: {shown}; "
    f"choose a {role} with the student's tokenizer"
  )
