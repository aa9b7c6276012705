"""How far the student writes at each step, and the static buckets that those lengths compile to."""

from opd_jax.horizon.ladder import bucket_for, powers_of_two
from opd_jax.horizon.schedules import Constant, Horizon, Progressive, full, progressive, truncated

__all__ = ["Constant", "Horizon", "Progressive", "bucket_for", "full", "powers_of_two", "progressive", "truncated"]
