"""Text in: data sets prepared, prompt files read into token ids through chat templates, and the order of a run."""

from opd_jax.data.audit import Finding, audit_answers, audit_tokenizers
from opd_jax.data.messages import Framing
from opd_jax.data.mixture import list_parts, read_mixture
from opd_jax.data.options import read_options
from opd_jax.data.prepare import prepare
from opd_jax.data.prompts import PromptSet, pad_left, pad_right, read_prompts
from opd_jax.data.rows import locate, split_sizes
from opd_jax.data.stream import PromptStream, RoutedStream
from opd_jax.data.tokenizer import Tokenizer, check_pair, load_tokenizer, stop_ids

__all__ = [
  "Finding",
  "Framing",
  "PromptSet",
  "PromptStream",
  "RoutedStream",
  "Tokenizer",
  "audit_answers",
  "audit_tokenizers",
  "check_pair",
  "list_parts",
  "load_tokenizer",
  "locate",
  "pad_left",
  "pad_right",
  "prepare",
  "read_mixture",
  "read_options",
  "read_prompts",
  "split_sizes",
  "stop_ids",
]
