"""The divergence of two language-model heads from hidden states, without the [tokens, vocab] arrays.

api          the operation: arguments, choice of implementation, gradient rule
problem      what is asked (static and arrays) and what is answered
formulas     the mathematics of one block of vocabulary
reference    the specification, dense
blocks       how the vocabulary is cut
token_chunk  XLA, gradients in the forward pass
"""

from opd_jax.divergence.api import divergence, scores
from opd_jax.divergence.problem import Divergence, Scores

__all__ = ["Divergence", "Scores", "divergence", "scores"]
