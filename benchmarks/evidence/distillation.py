"""The steps of a run without its files: the programs that `train` enters into its table, on a pair that is at hand.

decode_layout ─► rollout ─► update          compiled once for a config, then run for every seed
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.evidence.tiny_pairs import one_device
from opd_jax import config as configs
from opd_jax.distributed import place_rows
from opd_jax.models import Model
from opd_jax.objectives import make_token_weights
from opd_jax.programs import ProgramTable
from opd_jax.telemetry.metrics import to_floats
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, init_state, make_optimizer
from opd_jax.training.step import define_programs

_PROMPTS = 7  # stream of random numbers


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a student: itself, what `look` saw at each of `steps`, and the metrics of each step."""

  student: Model
  steps: list[int]
  looks: list[Any]
  metrics: list[dict[str, Any]]


class Distillation:
  """A config's programs.

  Args:
    config: of which rollout, objective, optimizer, horizon.max (the one bucket) and steps are read.
    vocab_size, eos_ids: of the pairs.
    first_of: ids whose first occurrence in a response does not train.
  """

  def __init__(self, config: configs.Config, vocab_size: int, eos_ids: tuple[int, ...], first_of: tuple[int, ...] = ()):
    self._config, self._mesh = config, one_device()
    self._table = ProgramTable(self._mesh)
    define_programs(self._table, config, eos_ids, vocab_size, make_token_weights(config, first_of))

  def train(
    self,
    student: Model,
    teacher: Model,
    prompts: Callable[[np.random.Generator, int], np.ndarray],
    seed: int,
    look: Callable[[Model], Any],
    every: int,
  ) -> Outcome:
    """`config.steps` steps. Neither model is changed.

    Args:
      student, teacher: float32, on `one_device()`.
      prompts: (generator, rows) -> int32 [rows, P].
      seed: of prompts and samples.
      look: what is asked of the student before the first step, after each `every` steps and after the last; its arrays
        are fetched.
    """
    c, bucket = self._config, self._config.horizon.max
    state, frozen = init_state(jax.tree.map(jnp.copy, student), make_optimizer(c)), Frozen(teacher)
    generator = np.random.default_rng((seed, _PROMPTS))
    steps, looks, rows = [], [], []

    def watch(step: int) -> None:
      steps.append(step)
      looks.append(jax.device_get(look(state.student)))

    for k in range(c.steps):
      if k % every == 0:
        watch(k)
      prompts_bp = prompts(generator, c.rows)
      batch = prompts_bp, np.ones(prompts_bp.shape, bool), np.arange(c.rows, dtype=np.uint32)
      prompts_bp, mask_bp, rows_r = place_rows(self._mesh, batch)
      decoding = self._table.run("decode_layout", 0, state.student)
      numbers = np.int32(bucket), np.uint32(seed), np.uint32(k)
      rollout = self._table.run("rollout", bucket, decoding, prompts_bp, mask_bp, *numbers, rows_r)
      state, metrics = self._table.run("update", bucket, state, frozen, Batch(rollout))
      rows.append(to_floats(metrics))
    watch(c.steps)
    return Outcome(state.student, steps, looks, rows)
