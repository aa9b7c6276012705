"""What the TPU compiler's own schedule says of the divergence kernels: a prediction, no measurement.

    PYTHONPATH=. python benchmarks/divergence_tpu.py --out benchmarks/results/divergence_tpu.md

Compiles the kernels for TPUs that are not there (needs libtpu: requirements-aot.txt) and counts the VLIW bundles of
each kernel's final schedule. A kernel is one loop over its tiles, so its bundles are those of one tile (and a few of
the prologue, which makes this an overestimate). Of a tile, the time is the longer of

    bundles / clock            what the core issues, with no stall
    HBM bytes / bandwidth      operands of the tile that change from step to step, and what is written

and of a step the sum over tiles, plus what XLA does around the kernels (zeroing and rounding the head's gradient).
"""

import dataclasses
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from opd_jax.divergence.pallas_tpu import tile_for
from opd_jax.divergence.shapes import SHAPES

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "TPU topologies")
_SHAPE = flags.DEFINE_enum("shape", "qwen3_1.7b_from_8b", list(SHAPES), "sizes of the call")
_OUT = flags.DEFINE_string("out", None, "file for the table")

# Tokens whose kept values are in memory at a time (pallas_tpu).
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks: bf16 FLOP/s, HBM bytes/s; clock in Hz; cores that share the grid."""

  flops: float
  bandwidth: float
  clock: float
  cores: int


_CHIPS = {
  "v5e": Chip(197e12, 0.82e12, 1.5e9, 1),
  "v5p": Chip(459e12, 2.77e12, 1.75e9, 2),
  "v6e": Chip(918e12, 1.64e12, 1.75e9, 1),
}


def bundles(topology: str, shape) -> dict[str, int]:
  """Bundles of the final schedule of each kernel."""
  sizes = map(str, (_CHUNK, shape.vocab, shape.student_width, shape.teacher_width))
  with tempfile.TemporaryDirectory() as folder:
    dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    command = [sys.executable, "-m", "opd_jax.divergence.aot", topology, "pallas_tpu", *sizes]
    subprocess.run(command, env=os.environ | {"LIBTPU_INIT_ARGS": dump}, check=True, stdout=subprocess.DEVNULL)
    counts = {}
    for path in Path(folder).glob("*divergence_*schedule-analysis_final_bundles.txt"):
      kernel = re.search(r"divergence_(statistics|d_hidden|d_head)", path.name)
      scheduled = re.search(r"total scheduled bundles:\s*(\d+)", path.read_text())
      if kernel and scheduled:
        counts[kernel.group(1)] = int(scheduled.group(1))
  return counts


def row(topology: str, shape) -> str:
  """One line of the table."""
  chip, counts = _CHIPS[topology.split(":")[0]], bundles(topology, shape)
  if len(counts) != 3:
    return f"| {topology} | unavailable: this libtpu wrote no schedule | | | | |"
  bt, bv = tile_for(shape.student_width, shape.teacher_width, 2)
  tiles = math.ceil(_CHUNK / bt) * math.ceil(shape.vocab / bv) * math.ceil(shape.tokens / _CHUNK)
  kept, student, both = 4 * bt * bv, 2 * shape.student_width, 2 * (shape.student_width + shape.teacher_width)
  moved = {
    "statistics": bv * both + kept,
    "d_hidden": bv * student + kept,
    # The float32 sum is read and written once for all token tiles of a chunk.
    "d_head": bt * student + kept + 2 * bv * 4 * shape.student_width * bt / _CHUNK,
  }
  units = {"statistics": shape.student_width + shape.teacher_width, "d_hidden": shape.student_width}
  units["d_head"] = shape.student_width
  cells, total = [], 0.0
  for kernel, count in counts.items():
    issue, memory = count / chip.clock / chip.cores, moved[kernel] / chip.bandwidth
    total += max(issue, memory) * tiles
    ideal = 2 * bt * bv * units[kernel] / chip.flops
    cells.append(
      (kernel, f"{issue / ideal:.2f}{' (HBM ' + format(memory / ideal, '.2f') + ')' if memory > issue else ''}")
    )
  total += shape.vocab * shape.student_width * (4 + 4 + 2) / chip.bandwidth
  floor = shape.least_flops / chip.flops
  cells = " | ".join(cell for _, cell in sorted(cells, reverse=True))
  return f"| {topology} | {cells} | {total * 1e3:.0f} | {floor * 1e3:.0f} | {floor / total:.2f} |"


def main(_):
  import jax

  shape = SHAPES[_SHAPE.value]
  lines = [
    "Predicted from the TPU compiler's static schedule, not measured; no stalls are modelled. "
    f"jax {jax.__version__}, pallas_tpu, bf16, reverse KL with both gradients, T {shape.tokens}, V {shape.vocab}, "
    f"D {shape.student_width}/{shape.teacher_width}.",
    "",
    "Kernels: issue time over the time of their products at peak (HBM time where that is longer).",
    "",
    "| topology | statistics | d_hidden | d_head | predicted ms | 4-unit floor ms | floor / predicted |",
    "|---|---|---|---|---|---|---|",
    *(row(topology, shape) for topology in _TOPOLOGIES.value),
  ]
  text = "\n".join(lines) + "\n"
  print(text)
  if _OUT.value:
    Path(_OUT.value).write_text(text)


if __name__ == "__main__":
  app.run(main)
