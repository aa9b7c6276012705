"""Invariants that have no better place, and the page that lists them all."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import reliability
from opd_jax import models
from opd_jax.config import from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.training.state import abstract_state, make_optimizer

ROOT = Path(__file__).resolve().parents[1]


def test_what_training_keeps_is_the_students_alone():
  """Two moments for each of the student's numbers, and counts: nothing of a teacher's shape."""
  fields = {"model_type": "qwen2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
  fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
  architecture = models.Architecture.from_config(fields, "test")
  optimizer = make_optimizer(from_config_dict({}, check=False))
  state = abstract_state(architecture, optimizer, make_mesh((1, 1, 1), jax.devices()[:1]))
  assert state.teacher is None
  weights = [leaf.shape for leaf in jax.tree.leaves(state.student)]
  moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
  assert sorted(moments) == sorted(2 * weights) and len(weights) == len(models.parameter_table(architecture))
  counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if not leaf.shape]
  assert (
    all(leaf.dtype == jnp.int32 for leaf in counts) and optax.tree_utils.tree_get(state.opt_state, "mu") is not None
  )


@pytest.mark.parametrize(
  "file", sorted({test.split("::")[0] for _, _, tests in reliability.INVARIANTS for test in tests})
)
def test_every_invariant_is_held_by_tests_that_exist(file):
  names = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
  wanted = {
    test.split("::")[1] for _, _, tests in reliability.INVARIANTS for test in tests if test.startswith(f"{file}::")
  }
  assert wanted and wanted <= names, wanted - names


def test_the_page_is_what_its_command_makes():
  assert (ROOT / "docs" / "reliability.md").read_text() == reliability.page(ROOT / "benchmarks" / "results")
