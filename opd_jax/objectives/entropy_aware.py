"""Entropy-aware OPD (arXiv 2603.07079): where the teacher itself is unsure, its whole choice is taught as well.

    every token                         the sampled token's policy gradient, clipped as it is
    those with teacher entropy > tau    and sum over the teacher's top-K of q (log q - log p)

An addition, no switch; both are divided by all valid tokens. One sampled token says little of a distribution that is
wide; the forward KL covers its modes.
"""

import dataclasses

from opd_jax import config as configs
from opd_jax.objectives.policy_gradient import PolicyGradient
from opd_jax.objectives.term import SCORES, Call, Signals, register


@dataclasses.dataclass(frozen=True)
class EntropyAware:
  """Attributes:
  sampled: the term of every token.
  above: tau, nats; the paper's 0.8.
  top_k: entries of the teacher's support.
  """

  sampled: PolicyGradient
  above: float
  top_k: int

  @property
  def needs(self) -> frozenset[str]:
    return self.sampled.needs | {SCORES}

  def calls(self, signals: Signals) -> tuple[Call, ...]:
    unsure_bs = signals.teacher_entropy_bs > self.above
    cover = Call(
      signals.weights_bs * unsure_bs,
      "forward_kl",
      support="teacher",
      top_k=self.top_k,
      repair="truncate",
      shown={"teacher_unsure": unsure_bs},
    )
    return (*self.sampled.calls(signals), cover)


def _make(c: configs.Objective) -> EntropyAware:
  return EntropyAware(PolicyGradient(c.gamma, c.clip, c.dual_clip, c.largest_advantage), c.entropy_above, c.top_k)


register("entropy_aware", _make)
