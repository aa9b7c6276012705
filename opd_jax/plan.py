"""Whether a run fits a machine that is not here: every program compiled for it, memory, collectives, advice.

python -m opd_jax.plan --config=configs/qwen3_1p7b_topd.py --topology=v5e:4x4 [--slices=2] [--json]

Needs the config.json of both models and, for a TPU topology, libtpu (pip install -r requirements-tpu.txt); no weights,
no data, no accelerator. Exit status: 0 it fits, 1 it does not, 2 bad input.
"""

import json
import sys

from absl import flags
from rich.console import Console

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.distributed.topologies import find_topology, use_cpu
from opd_jax.planning import make_plan

_TOPOLOGY = flags.DEFINE_string("topology", "", "Machine: v5e:16x16, v5p:4x4x8, v6e:8x8, cpu:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network.")
_JSON = flags.DEFINE_bool("json", False, "One JSON object on stdout, and nothing else there.")


def main(config: Config) -> None:
  name = command_line.required(_TOPOLOGY, "v5e:4x4")
  topology = find_topology(name, _SLICES.value)
  use_cpu(name)
  verdict = make_plan(config, topology, say=lambda line: print(line, file=sys.stderr, flush=True))
  if _JSON.value:
    print(json.dumps(verdict.to_json(), indent=2))
  else:
    verdict.show(Console(width=None if sys.stdout.isatty() else 120))
  sys.exit(0 if verdict.fits else 1)


if __name__ == "__main__":
  command_line.run(main)
