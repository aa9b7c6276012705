"""The papers' baseline: a policy gradient on log-ratios of the written tokens.

    r_t = log q(y_t) - log p(y_t)          what the teacher says of a token, a reward
    A_t = sum over t' >= t of gamma^(t'-t) r_t'
    gradient = - sum_t A_t grad log p(y_t)

gamma = 0 looks at one token (arXiv 2605.31490; the token-level estimator of 2603.25562, section 2.1), gamma = 1 is the
gradient of the sequences' KL with the past left out, whose variance grows with the fourth power of the length.

With a clip, what is differentiated is PPO's surrogate of the ratio p / p when written, as in the released baseline.
Every such surrogate is a function of log p(y_t) alone, so that all it asks of the heads is `sampled` with minus its own
derivative as advantage.
"""

import dataclasses

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax.objectives.term import OWN_TOKENS, REFERENCE, SCORES, Call, Signals, register

_LARGEST_LOG_RATIO = 20.0  # exp of more would only be cut off by a clip


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
  """Sampled-token distillation.

  Attributes:
    gamma: of the return-to-go, 0 to 1.
    clip: eps of the ratio's range 1 - eps .. 1 + eps; 0: no ratio at all, as all is on policy.
    dual_clip: c > 1: where the advantage is negative the surrogate stays below -c A; 0: off. Goes with `clip`.
    largest: advantages are cut to -largest .. largest; 0: off.
    extrapolation: lambda of G-OPD, arXiv 2602.12125: r_t = lambda (log q - log ref) - (log p - log ref); 1 needs no
      reference, 1.25 is ExOPD.
  """

  gamma: float = 0.0
  clip: float = 0.0
  dual_clip: float = 0.0
  largest: float = 0.0
  extrapolation: float = 1.0

  @property
  def needs(self) -> frozenset[str]:
    if self == PolicyGradient():
      return frozenset({OWN_TOKENS})  # r_t itself is what the op takes where it is told no advantage
    return frozenset({OWN_TOKENS, SCORES} if self.extrapolation == 1 else {OWN_TOKENS, SCORES, REFERENCE})

  def calls(self, signals: Signals) -> tuple[Call, ...]:
    if SCORES not in self.needs:
      return (Call(signals.weights_bs, "sampled"),)
    new_bs = signals.student_logprob_bs
    old_bs = signals.behaviour_logprob_bs if self.clip else new_bs
    reward_bs = signals.teacher_logprob_bs - old_bs
    if self.extrapolation != 1:
      reward_bs += (self.extrapolation - 1) * (signals.teacher_logprob_bs - signals.reference_logprob_bs)
    advantages_bs = return_to_go(jnp.where(signals.mask_bs, reward_bs, 0.0), self.gamma)
    if self.largest:
      advantages_bs = jnp.clip(advantages_bs, -self.largest, self.largest)
    if not self.clip:
      return (Call(signals.weights_bs, "sampled", advantages_bs=advantages_bs),)

    def surrogate(new_bs):
      return clipped_surrogate(new_bs, old_bs, advantages_bs, self.clip, self.dual_clip)

    slope_bs = jax.grad(lambda new_bs: surrogate(new_bs).sum())(new_bs)
    cut_bs = (slope_bs == 0) & (advantages_bs != 0)
    return (Call(signals.weights_bs, "sampled", advantages_bs=-slope_bs, shown={"clipped": cut_bs}),)


def return_to_go(reward_bs: jax.Array, gamma: float) -> jax.Array:
  """[B, S] sums of the rewards from each column on, the k-th after it counting gamma^k. Off the mask they must be 0."""

  def add(later_b, reward_b):
    total_b = reward_b + gamma * later_b
    return total_b, total_b

  _, total_sb = jax.lax.scan(add, jnp.zeros_like(reward_bs[:, 0]), reward_bs.T, reverse=True)
  return total_sb.T


def clipped_surrogate(new: jax.Array, old: jax.Array, advantages: jax.Array, clip: float, dual_clip: float):
  """PPO's loss of each token, with a second clip from below where the advantage is negative (arXiv 1912.09729).

  Args:
    new, old: log-probs of the token, nats, any one shape; differentiate in `new`.
    advantages: of the same shape.
    clip: eps > 0.
    dual_clip: c > 1, or 0 for none.
  """
  ratio = jnp.exp(jnp.clip(new - old, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO))
  loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))
  if not dual_clip:
    return loss
  return jnp.where(advantages < 0, jnp.minimum(loss, -advantages * dual_clip), loss)


def _make(c: configs.Objective) -> PolicyGradient:
  return PolicyGradient(c.gamma, c.clip, c.dual_clip, c.largest_advantage)


register("sampled", _make)
register("extrapolated", lambda c: dataclasses.replace(_make(c), extrapolation=c.extrapolation))
