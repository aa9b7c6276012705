"""What the student minimises: the terms of a config, each with its factor, over the tokens that count.

student, teacher (hidden states, head) ─► [select tokens] ─► signals that the terms need ─► terms ─► calls of the op
                                              no gradient ───┘                                └─► one gradient each
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax.divergence import Divergence, divergence
from opd_jax.objectives.selection import ENTROPY, Selection, take_columns
from opd_jax.objectives.term import REFERENCE, SCORES, Call, Signals, Term, make_terms
from opd_jax.telemetry.metrics import Metrics, Ratio


class Reading(NamedTuple):
  """What a model makes of completions: the states that predict each token, and the head that they are read with."""

  hidden_bsd: jax.Array
  head_vd: jax.Array


class Loss(NamedTuple):
  """An objective's answer.

  Attributes:
    value: [] with its gradient, in the student's reading.
    student, teacher: readings of the tokens that were looked at, which are fewer columns under a selection.
    signals: of those tokens.
    result: of the first call of the op, [B, S] a field.
    metrics: what the terms show, means over the valid tokens.
  """

  value: jax.Array
  student: Reading
  teacher: Reading
  signals: Signals
  result: Divergence
  metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Objective:
  """A sum of terms.

  Attributes:
    terms: (factor, term) each.
    vocab_size: ids that both tokenizers have; rows of the heads past it are padding.
    temperature: divides the student's logits.
    teacher_temperature: divides the teacher's.
    selection: of tokens; None: all.
  """

  terms: tuple[tuple[float, Term], ...]
  vocab_size: int
  temperature: float = 1.0
  teacher_temperature: float = 1.0
  selection: Selection | None = None

  @property
  def needs(self) -> frozenset[str]:
    return frozenset().union(*(term.needs for _, term in self.terms))

  def __call__(self, student: Reading, teacher: Reading, signals: Signals, reference: Reading | None = None) -> Loss:
    """The loss of some rows, whose weights are shares of the global batch.

    Args:
      student, teacher: readings of the same completions.
      signals: of the rollout; the scores are filled in here.
      reference: reading of a third model, where `needs` has REFERENCE.
    """
    if self.selection:
      student, teacher, reference, signals = self._selected(student, teacher, reference, signals)
    if SCORES in self.needs:
      signals = self._scored(student, teacher, signals)
    if REFERENCE in self.needs:
      result = self._forward(student, reference, signals, self.temperature)
      signals = dataclasses.replace(signals, reference_logprob_bs=result.teacher_logprob)
    signals = jax.lax.stop_gradient(signals)
    value, results, shown = 0.0, [], {}
    for factor, term in self.terms:
      for call in term.calls(signals):
        results.append(diverge(call, student, teacher, signals.tokens_bs, self.vocab_size, *self._temperatures))
        value += factor * results[-1].loss
        shown |= call.shown
    metrics = {name: Ratio.of(values_bs, signals.mask_bs) for name, values_bs in shown.items()}
    return Loss(value, student, teacher, signals, jax.lax.stop_gradient(results[0]), metrics)

  @property
  def _temperatures(self) -> tuple[float, float]:
    return self.temperature, self.teacher_temperature

  def _forward(self, student: Reading, other: Reading, signals: Signals, temperature: float) -> Divergence:
    """KL(student || other), log-probs and entropies, without gradient."""
    call = Call(jnp.zeros_like(signals.weights_bs), "reverse_kl")
    student, other = jax.lax.stop_gradient((student, other))
    return diverge(call, student, other, signals.tokens_bs, self.vocab_size, self.temperature, temperature)

  def _scored(self, student: Reading, teacher: Reading, signals: Signals) -> Signals:
    result = self._forward(student, teacher, signals, self.teacher_temperature)
    return dataclasses.replace(
      signals,
      student_logprob_bs=result.student_logprob,
      teacher_logprob_bs=result.teacher_logprob,
      student_entropy_bs=result.student_entropy,
      teacher_entropy_bs=result.teacher_entropy,
      reverse_kl_bs=result.per_token,
    )

  def _selected(self, student: Reading, teacher: Reading, reference: Reading | None, signals: Signals):
    """The same with the chosen columns alone."""
    if self.selection.by == ENTROPY:
      score_bs = signals.behaviour_entropy_bs
    else:
      score_bs = self._forward(student, teacher, signals, self.teacher_temperature).per_token
    columns_bk, weights_bk = self.selection.columns(score_bs, signals.weights_bs)

    def take(reading: Reading | None) -> Reading | None:
      return reading and Reading(take_columns(reading.hidden_bsd, columns_bk), reading.head_vd)

    chosen = jax.tree.map(lambda array_bs: take_columns(array_bs, columns_bk), signals)
    chosen = dataclasses.replace(chosen, weights_bs=weights_bk, mask_bs=weights_bk > 0)
    return take(student), take(teacher), take(reference), chosen


def make_objective(config: configs.Objective, vocab_size: int) -> Objective:
  """That of a config. Raises InputError for a `kind` that names no terms."""
  return Objective(
    make_terms(config),
    vocab_size,
    config.temperature,
    config.teacher_temperature or config.temperature,
    Selection(config.select_by, config.select_share) if config.select_by else None,
  )


def diverge(
  call: Call,
  student: Reading,
  teacher: Reading,
  tokens_bs: jax.Array,
  vocab_size: int,
  temperature: float = 1.0,
  teacher_temperature: float = 1.0,
) -> Divergence:
  """One call of the op on readings [B, S, ...]; the fields of the result are [B, S], its loss is a scalar."""
  b, s = tokens_bs.shape
  # Tokens are split over data and fsdp, the vocabulary over tensor: the op does its own collectives.
  mesh = jax.sharding.get_abstract_mesh()

  def flat(array: jax.Array | None) -> jax.Array | None:
    return None if array is None else array.reshape(b * s, *array.shape[2:])

  result = divergence(
    flat(student.hidden_bsd),
    student.head_vd,
    flat(teacher.hidden_bsd),
    teacher.head_vd,
    flat(call.weights_bs),
    kind=call.kind,
    beta=call.beta,
    temperature=temperature,
    teacher_temperature=teacher_temperature,
    vocab_size=vocab_size,
    sampled_ids=flat(tokens_bs),
    advantages=flat(call.advantages_bs),
    support=call.support,
    top_k=call.top_k,
    repair=call.repair,
    with_sampled=call.with_sampled,
    mesh=None if mesh.empty or mesh.size == 1 else mesh,
  )
  return jax.tree.map(lambda array: array.reshape(b, s) if array.ndim else array, result)
