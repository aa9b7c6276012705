"""What a model makes of completions, on its way from the scoring to the objective."""

from typing import NamedTuple

import jax


class Reading(NamedTuple):
  """The states that predict each token, and the head that they are read with.

  Attributes:
    hidden_bsd: [B, S, D], as `scoring.score` gives them.
    head_vd: [V, D], or more rows: padding.
  """

  hidden_bsd: jax.Array
  head_vd: jax.Array
