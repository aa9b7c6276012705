"""What the student minimises, and how much each token counts."""

from opd_jax.objectives.objective import Objective, token_weights

__all__ = ["Objective", "token_weights"]
