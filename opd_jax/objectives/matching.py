"""Divergences of whole next-token distributions: over the vocabulary, or on a few entries of it.

reverse_kl, forward_kl, jsd      every entry; or the `objective.support` of `objective.top_k` entries
lsm                              teacher's top-K, both models renormalised on it (arXiv 2603.25562, section 4: V1)
lsm_student, lsm_teacher         student's or teacher's top-K and the written token, renormalised (V2, V3)
head_tail_student, ..._teacher   sum over the top-K of p log(p/q), and the written token's score outside (V4, V5)
"""

import dataclasses

from opd_jax import config as configs
from opd_jax.objectives.term import OWN_TOKENS, Call, Signals, register

_SAMPLED_TAILS = ("score_tail", "head_tail")  # repairs that estimate what is off the support from the written token


@dataclasses.dataclass(frozen=True)
class Matching:
  """A divergence of the two next-token distributions at every token. Fields as those of `Call`."""

  kind: str
  beta: float = 0.5
  support: str | None = None
  top_k: int | None = None
  repair: str | None = None
  with_sampled: bool = False

  @property
  def needs(self) -> frozenset[str]:
    return frozenset({OWN_TOKENS} if self.repair in _SAMPLED_TAILS else ())

  def calls(self, signals: Signals) -> tuple[Call, ...]:
    return (Call(signals.weights_bs, **dataclasses.asdict(self)),)


def _of_config(kind: str):
  def make(c: configs.Objective) -> Matching:
    if not c.support:
      return Matching(kind, c.beta)
    return Matching(kind, c.beta, c.support, c.top_k, c.repair)

  return make


def _local(support: str, repair: str, with_sampled: bool):
  return lambda c: Matching("reverse_kl", c.beta, support, c.top_k, repair, with_sampled)


for _kind in ("reverse_kl", "forward_kl", "jsd"):
  register(_kind, _of_config(_kind))
register("lsm", _local("teacher", "renormalize", False))
register("lsm_student", _local("student", "renormalize", True))
register("lsm_teacher", _local("teacher", "renormalize", True))
register("head_tail_student", _local("student", "head_tail", False))
register("head_tail_teacher", _local("teacher", "head_tail", False))
