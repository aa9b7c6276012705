"""What the tests of training share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compiles():
  """LLVM's optimizations of one device's code are most of the time of many tests; without them, the same HLO."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
