"""What the TPU compiler's own schedule says of the divergence kernels: a prediction, no measurement.

    PYTHONPATH=. python benchmarks/divergence_tpu.py --out benchmarks/results/divergence_tpu.md

Compiles the kernels for TPUs that are not there (needs libtpu: requirements-aot.txt) and counts the VLIW bundles of
each kernel's final schedule. A kernel is one loop over its tiles, so its bundles are those of one tile (and a few of
the prologue, which makes this an overestimate). Of a tile, the time is the longest of

    bundles / clock            what the core issues, with no stall
    HBM bytes / bandwidth      operands of the tile that change from step to step, and what is written
    the products at peak       the schedule waits for no busy matrix unit, and can come out shorter than this

and of a step the sum over tiles, plus what XLA does around the kernels (zeroing and rounding the head's gradient).

Then the op on a whole slice (--slice, in shard_map over (data, tensor)), compiled: what a chip holds, and how often the
chips talk.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from opd_jax.divergence.shapes import SHAPES
from opd_jax.divergence.tiles import tpu_tile

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "TPU topologies")
_SHAPE = flags.DEFINE_enum("shape", "qwen3_1.7b_from_8b", list(SHAPES), "sizes of the call")
_SLICE = flags.DEFINE_string("slice", "v5e:16x16", "TPU topology of the op in shard_map")
_TENSOR = flags.DEFINE_integer("tensor", 16, "chips of it along the vocabulary")
_OUT = flags.DEFINE_string("out", None, "file for the table")

# Tokens whose kept values are in memory at a time (pallas_tpu).
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks: bf16 FLOP/s, HBM bytes/s; clock in Hz."""

  flops: float
  bandwidth: float
  clock: float


_CHIPS = {
  "v5e": Chip(197e12, 0.82e12, 1.5e9),
  "v5p": Chip(459e12, 2.77e12, 1.75e9),
  "v6e": Chip(918e12, 1.64e12, 1.75e9),
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
      kernel = re.search(r"divergence_(statistics|gradients)", path.name)
      scheduled = re.search(r"total scheduled bundles:\s*(\d+)", path.read_text())
      if kernel and scheduled:
        counts[kernel.group(1)] = int(scheduled.group(1))
  return counts


def row(topology: str, shape) -> str:
  """One line of the table."""
  generation = topology.split(":")[0]
  chip, counts = _CHIPS[generation], bundles(topology, shape)
  if len(counts) != 2:
    return f"| {topology} | unavailable: this libtpu wrote no schedule | | | | | |"
  tile = tpu_tile(generation, shape.student_width, shape.teacher_width, 2)
  token_tiles, kept, student = math.ceil(_CHUNK / tile.tokens), 4 * tile.tokens * tile.rows, 2 * shape.student_width
  tiles = token_tiles * math.ceil(shape.vocab / tile.rows) * math.ceil(shape.tokens / _CHUNK)
  moved = {
    "statistics": kept + tile.rows * 2 * (shape.student_width + shape.teacher_width),
    # The head and the float32 sum (read and written) once for all token tiles, the hidden states once for one.
    "gradients": kept
    + tile.rows * (student + 8 * shape.student_width) / token_tiles
    + (tile.tokens * student if token_tiles > 1 else 0),
  }
  units = {"statistics": shape.student_width + shape.teacher_width, "gradients": 2 * shape.student_width}
  cells, total = [f"{tile.tokens} x {tile.rows}"], 0.0
  for kernel in ("statistics", "gradients"):
    issue, memory = counts[kernel] / chip.clock / tile.cores, moved[kernel] / chip.bandwidth
    ideal = 2 * tile.tokens * tile.rows * units[kernel] / chip.flops
    total += max(issue, memory, ideal) * tiles
    cells.append(f"{issue / ideal:.2f}" + (f" (HBM {memory / ideal:.2f})" if memory > max(issue, ideal) else ""))
  total += shape.vocab * shape.student_width * (4 + 4 + 2) / chip.bandwidth
  floor = shape.least_flops / chip.flops
  return f"| {topology} | {' | '.join(cells)} | {total * 1e3:.0f} | {floor * 1e3:.0f} | {floor / total:.2f} |"


def slice_lines(shape) -> list[str]:
  """The table of the op in shard_map; `shape.tokens` are those of each data shard."""
  lines = [
    f"Compiled for {_SLICE.value} in shard_map, mesh (data, tensor), {shape.tokens} tokens a data shard. Of one chip:",
    "",
    "| data x tensor | implementation | compile s | kernels | collectives | temporaries MiB | dW MiB of it |",
    "|---|---|---|---|---|---|---|",
  ]
  chips = math.prod(map(int, _SLICE.value.split(":")[1].split("x")))
  data, tensor = chips // _TENSOR.value, _TENSOR.value
  d_head = 4 * math.ceil(shape.vocab / tensor) * shape.student_width / 2**20
  for implementation in ("pallas_tpu", "token_chunk"):
    sizes = (data * shape.tokens, shape.vocab, shape.student_width, shape.teacher_width, tensor)
    command = [sys.executable, "-m", "opd_jax.divergence.aot", _SLICE.value, implementation, *map(str, sizes)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    talk = ", ".join(f"{count} {name}" for name, count in report["collectives"].items())
    lines.append(
      f"| {data} x {tensor} | {implementation} | {report['trace_and_compile_seconds']} | {report['custom_calls']} "
      f"| {talk} | {report['temporary_bytes'] / 2**20:.0f} | {d_head:.0f} |"
    )
  return lines


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
    "| topology | tile | statistics | gradients | predicted ms | 4-unit floor ms | floor / predicted |",
    "|---|---|---|---|---|---|---|",
    *(row(topology, shape) for topology in _TOPOLOGIES.value),
    "",
    *slice_lines(shape),
  ]
  text = "\n".join(lines) + "\n"
  print(text)
  if _OUT.value:
    Path(_OUT.value).write_text(text)


if __name__ == "__main__":
  app.run(main)
