"""Whether a run fits a machine that is not here: every program compiled for it, memory, collectives, advice.

python -m opd_jax.plan --config=configs/qwen3_1p7b_topd.py --topology=v5e:4x4 [--slices=2] [--json]
python -m opd_jax.plan --config=... --topology=... --compare-buckets [--lengths=FILE] [--json]

Needs the config.json of both models and, for a TPU topology, libtpu (pip install -r requirements-tpu.txt); no weights,
no data, no accelerator. Exit status: 0 it fits, 1 it does not, 2 bad input.

With --compare-buckets: what each policy for `horizon.buckets` would cost instead, for the run's schedule and for OPD,
POPD and TOPD at its maximum, and the ladder that is best. Compiles at most 12 widths.
"""

import json
import sys
from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from opd_jax import command_line
from opd_jax.config import Config
from opd_jax.distributed.topologies import find_topology, use_cpu
from opd_jax.errors import InputError
from opd_jax.planning import compare_buckets, make_plan

_TOPOLOGY = flags.DEFINE_string("topology", "", "Machine: v5e:16x16, v5p:4x4x8, v6e:8x8, cpu:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network.")
_JSON = flags.DEFINE_bool("json", False, "One JSON object on stdout, and nothing else there.")
_COMPARE = flags.DEFINE_bool("compare-buckets", False, "Compare policies for horizon.buckets.")
_LENGTHS = flags.DEFINE_string("lengths", "", "With it: JSON list of completion lengths; else all reach the horizon.")


def main(config: Config) -> None:
  name = command_line.required(_TOPOLOGY, "v5e:4x4")
  topology = find_topology(name, _SLICES.value)
  lengths = _lengths(_LENGTHS.value)
  use_cpu(name)

  def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

  if _COMPARE.value:
    jax.config.update("jax_enable_compilation_cache", False)  # a compile read back from a cache would cost nothing
    answer = compare_buckets(config, topology, say, lengths)
  else:
    answer = make_plan(config, topology, say)
  if _JSON.value:
    print(json.dumps(answer.to_json(), indent=2))
  else:
    answer.show(Console(width=None if sys.stdout.isatty() else 120))
  sys.exit(0 if _COMPARE.value or answer.fits else 1)


def _lengths(path: str) -> list[int]:
  if not path:
    return []
  if not _COMPARE.value:
    raise InputError("--lengths goes with --compare-buckets: give both, or neither")
  try:
    lengths = json.loads(Path(path).read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"--lengths={path} cannot be read as JSON: {error}") from error
  if not isinstance(lengths, list) or not lengths or any(type(n) is not int or n < 1 for n in lengths):
    raise InputError(f"--lengths={path}: it must hold a list of positive integers, such as [812, 1033, 4096]")
  return lengths


if __name__ == "__main__":
  command_line.run(main)
