"""How good a student is: its answers graded against references."""

from opd_jax.evaluation.graders import grade, register

__all__ = ["grade", "register"]
