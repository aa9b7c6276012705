"""The student writes: the batch contract, drawing a token, the prefill and decode loop."""

from opd_jax.rollout.batch import Rollout
from opd_jax.rollout.generation import generate
from opd_jax.rollout.layout import decode_layout
from opd_jax.rollout.sampler import sample_completions
from opd_jax.rollout.token_sampling import Sampling

__all__ = ["Rollout", "Sampling", "decode_layout", "generate", "sample_completions"]
