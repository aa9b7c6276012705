"""What a student and its teacher differ in, without training: the table that `train` begins with.

python -m opd_jax.audit --config=configs/quickstart.py

Tokenizers and templates, what is left out of the loss, and what each model makes of its own and of the other's greedy
answers to the first prompts. Needs no --workdir and leaves nothing.
"""

import tempfile

import jax
import jax.numpy as jnp

from opd_jax import command_line, models
from opd_jax.config import Config
from opd_jax.distributed import cluster
from opd_jax.telemetry.console import print_pair
from opd_jax.training import audit_pair, load_teacher, open_run


def main(config: Config) -> None:
  with tempfile.TemporaryDirectory() as workdir:
    run = open_run(config, workdir)
    student, rows = models.load(run.student_path, dtype=jnp.float32, mesh=run.mesh), {}
    for name in run.teachers:
      teacher = None if config.teacher.ema else load_teacher(run, name)[0]
      rows |= dict.fromkeys(audit_pair(run, teacher, student, resumed=False, route=name)[1])
  if jax.process_index() == 0:
    print_pair(list(rows))


def start(config: Config) -> None:
  """`main` of a process of its own: jax wants to hear of a cluster before it is used for anything."""
  with cluster():
    main(config)


if __name__ == "__main__":
  command_line.run(start)
