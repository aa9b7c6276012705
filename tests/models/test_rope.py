"""Frequencies against transformers' own, and the one property that makes a rotation a position embedding."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_jax.models.rope import Rope, angles, frequencies, rotate

_FACTOR = st.floats(1.0, 64.0)
_CONTEXT = st.integers(32, 8192)
ROPES = st.one_of(
  st.fixed_dictionaries({"rope_type": st.just("default")}),
  st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": _FACTOR}),
  st.fixed_dictionaries({
    "rope_type": st.just("llama3"), "factor": _FACTOR, "low_freq_factor": st.floats(0.5, 2.0),
    "high_freq_factor": st.floats(2.5, 8.0), "original_max_position_embeddings": _CONTEXT,
  }),
  st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": _FACTOR, "original_max_position_embeddings": _CONTEXT},
    optional={
      "beta_fast": st.floats(8.0, 64.0), "beta_slow": st.floats(0.5, 4.0), "truncate": st.booleans(),
      "mscale": st.floats(0.5, 2.0), "mscale_all_dim": st.floats(0.5, 2.0), "attention_factor": st.floats(0.5, 2.0),
    },
  ),
)  # fmt: skip


@settings(max_examples=60)
@given(fields=ROPES, theta=st.sampled_from([1e4, 5e5, 1e6]), head_dim=st.sampled_from([8, 64, 128]))
def test_frequencies_are_those_of_transformers(fields, theta, head_dim):
  from transformers import Qwen3Config
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
  from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

  theirs = Qwen3Config(head_dim=head_dim, rope_parameters={**fields, "rope_theta": theta})
  functions = {"default": Qwen3RotaryEmbedding.compute_default_rope_parameters, **ROPE_INIT_FUNCTIONS}
  expected, expected_factor = functions[fields["rope_type"]](theirs)
  rope = Rope.from_config({"rope_theta": theta, "rope_scaling": fields}, theirs.max_position_embeddings, "config.json")
  frequency, factor = frequencies(rope, head_dim)
  # Theirs is evaluated in float32: where a ramp between two frequencies `factor` apart nears its end, one rounding
  # of the ramp counts `factor` (here up to 64) times.
  np.testing.assert_allclose(frequency, expected.numpy(), rtol=64 * 2 * np.finfo(np.float32).eps)
  np.testing.assert_allclose(factor, expected_factor, rtol=1e-12)


@settings(max_examples=20)
@given(query_at=st.integers(0, 200), key_at=st.integers(0, 200), shift=st.integers(1, 200))
def test_scores_depend_on_the_distance_only(query_at, key_at, shift):
  rng = np.random.default_rng(0)
  query, key = (jnp.asarray(rng.normal(size=(1, 1, 2, 16)), jnp.float32) for _ in range(2))
  rope = Rope(theta=1e4)

  def score(*positions: int):
    rotated = [rotate(x, *angles(rope, 16, jnp.array([[p]]))) for x, p in zip((query, key), positions, strict=True)]
    return jnp.sum(rotated[0] * rotated[1], axis=-1)

  np.testing.assert_allclose(score(query_at, key_at), score(query_at + shift, key_at + shift), atol=1e-4)
