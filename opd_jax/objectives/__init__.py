"""What the student minimises: terms, how much each token counts, and the gradient calls that come of them."""

from opd_jax.objectives.diagnostics import diagnose, repetition
from opd_jax.objectives.entropy_aware import EntropyAware
from opd_jax.objectives.margin_drop import Cut, MarginDrop, make_margin_drop
from opd_jax.objectives.matching import Matching
from opd_jax.objectives.objective import Loss, Objective, diverge, make_objective
from opd_jax.objectives.policy_gradient import PolicyGradient
from opd_jax.objectives.reading import Reading
from opd_jax.objectives.selection import ENTROPY, Selection
from opd_jax.objectives.term import OWN_TOKENS, REFERENCE, SCORES, Call, Signals, Term, make_terms, register
from opd_jax.objectives.token_weights import TokenWeights, make_token_weights

__all__ = [
  "ENTROPY",
  "OWN_TOKENS",
  "REFERENCE",
  "SCORES",
  "Call",
  "Cut",
  "EntropyAware",
  "Loss",
  "MarginDrop",
  "Matching",
  "Objective",
  "PolicyGradient",
  "Reading",
  "Selection",
  "Signals",
  "Term",
  "TokenWeights",
  "diagnose",
  "diverge",
  "make_margin_drop",
  "make_objective",
  "make_terms",
  "make_token_weights",
  "register",
  "repetition",
]
