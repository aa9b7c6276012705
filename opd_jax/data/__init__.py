"""Text in: tokenizers with their chat templates, and prompt files read into token ids."""

from opd_jax.data.audit import Finding, audit_tokenizers
from opd_jax.data.prompts import PromptSet, order, pad_left, read_prompts
from opd_jax.data.tokenizer import Tokenizer, check_pair, load_tokenizer, stop_ids

__all__ = [
  "Finding",
  "PromptSet",
  "Tokenizer",
  "audit_tokenizers",
  "check_pair",
  "load_tokenizer",
  "order",
  "pad_left",
  "read_prompts",
  "stop_ids",
]
