"""What the student minimises: the terms of a config, each with its factor, over the tokens that count.

student, teacher (hidden states, head) ─► [select tokens] ─► signals that the terms need ─► terms ─► calls of the op
                                              no gradient ───┘            all at once, in segments or in two parts ─┘
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax.divergence import Divergence, divergence
from opd_jax.errors import InputError
from opd_jax.objectives.in_segments import Calls, add_up_in_segments
from opd_jax.objectives.margin_drop import Cut, MarginDrop
from opd_jax.objectives.reading import Reading
from opd_jax.objectives.selection import ENTROPY, Selection, take_columns
from opd_jax.objectives.term import REFERENCE, SCORES, Call, Signals, Term, make_terms
from opd_jax.telemetry.metrics import Metrics, Ratio


class Loss(NamedTuple):
  """An objective's answer.

  Attributes:
    value: with its gradient, in the student's reading; [], or [2] where it was asked for in two parts.
    student, teacher: readings of the tokens that were looked at, which are fewer columns under a selection.
    signals: of those tokens.
    result: of the first call of the op, [B, S] a field.
    metrics: what the terms show, means over the valid tokens.
    cut: where responses stop to train; None where none is cut.
  """

  value: jax.Array
  student: Reading
  teacher: Reading
  signals: Signals
  result: Divergence
  metrics: Metrics
  cut: Cut | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
  """A sum of terms.

  Attributes:
    terms: (factor, term) each.
    vocab_size: ids that both tokenizers have; rows of the heads past it are padding.
    temperature: divides the student's logits.
    teacher_temperature: divides the teacher's.
    selection: of tokens; None: all.
    margin_drop: where responses are cut, by what the heads show on the way; None: nowhere. Not with a selection.
  """

  terms: tuple[tuple[float, Term], ...]
  vocab_size: int
  temperature: float = 1.0
  teacher_temperature: float = 1.0
  selection: Selection | None = None
  margin_drop: MarginDrop | None = None

  @property
  def needs(self) -> frozenset[str]:
    return frozenset().union(*(term.needs for _, term in self.terms))

  def __call__(
    self,
    student: Reading,
    teacher: Reading,
    signals: Signals,
    reference: Reading | None = None,
    prefix: jax.Array | None = None,
  ) -> Loss:
    """The loss of some rows, whose weights are shares of the global batch.

    Args:
      student, teacher: readings of the same completions.
      signals: of the rollout; the scores are filled in here.
      reference: reading of a third model, where `needs` has REFERENCE.
      prefix: int32 scalar; asks for the loss in two parts: of the tokens before this column, and of the others. Not
        where responses are cut.
    """
    if self.selection:
      student, teacher, reference, signals = self._selected(student, teacher, reference, signals)
    if SCORES in self.needs:
      signals = self._scored(student, teacher, signals)
    if REFERENCE in self.needs:
      result = self._forward(student, reference, signals, self.temperature)
      signals = dataclasses.replace(signals, reference_logprob_bs=result.teacher_logprob)
    signals = jax.lax.stop_gradient(signals)
    calls, cut = [(factor, call) for factor, term in self.terms for call in term.calls(signals)], None
    if self.margin_drop:
      arrays = student, teacher, signals.tokens_bs, signals.mask_bs
      value, result, cut = add_up_in_segments(self.margin_drop, self._add_up, calls, *arrays)
    elif prefix is None:
      value, result = self._add_up(calls, student, teacher, signals.tokens_bs)
    else:
      early_bs = signals.positions_bs < prefix
      parts = ([(f, call.where(part_bs)) for f, call in calls] for part_bs in (early_bs, ~early_bs))
      (early, result), (late, _) = (self._add_up(part, student, teacher, signals.tokens_bs) for part in parts)
      value = jnp.stack([early, late])
    shown = {name: values_bs for _, call in calls for name, values_bs in call.shown.items()}
    metrics = {name: Ratio.of(values_bs, signals.mask_bs) for name, values_bs in shown.items()}
    return Loss(value, student, teacher, signals, jax.lax.stop_gradient(result), metrics, cut)

  def _add_up(self, calls: Calls, student: Reading, teacher: Reading, tokens_bs: jax.Array):
    """(loss of the calls together, result of the first) over some columns."""
    value, results = 0.0, []
    for factor, call in calls:
      results.append(diverge(call, student, teacher, tokens_bs, self.vocab_size, *self._temperatures))
      value += factor * results[-1].loss
    return value, results[0]

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


def make_objective(config: configs.Objective, vocab_size: int, margin_drop: MarginDrop | None = None) -> Objective:
  """That of a config's section, with the `make_margin_drop` of the whole config.

  Raises InputError for a `kind` that names no terms, and for a support that the divergence op does not take.
  """
  objective = Objective(
    make_terms(config),
    vocab_size,
    config.temperature,
    config.teacher_temperature or config.temperature,
    Selection(config.select_by, config.select_share) if config.select_by else None,
    margin_drop,
  )
  if any(getattr(term, "top_k", None) for _, term in objective.terms):
    _check_supports(objective)
  return objective


def _check_supports(objective: Objective) -> None:
  """Has the op look at one token, of which there is nothing but the shape: what it would refuse in the first step, when
  all is loaded, is refused here. On a mesh one token cannot be split, and nothing is looked at."""
  if not jax.sharding.get_abstract_mesh().empty:
    return

  def one(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)

  reading, number = Reading(one(1, 1, 1), one(objective.vocab_size, 1)), one(1, 1)
  signals = Signals(one(1, 1, dtype=jnp.int32), one(1, 1, dtype=jnp.int32), one(1, 1, dtype=bool), *[number] * 2)
  plain = dataclasses.replace(objective, selection=None, margin_drop=None)
  try:
    jax.eval_shape(plain, reading, reading, signals, reading if REFERENCE in objective.needs else None)
  except ValueError as error:
    raise InputError(f"config.objective does not fit together: {error}") from error


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
