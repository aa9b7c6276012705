"""What the TPU compiler says of a decode step's attention, the kernel beside XLA's form: a prediction, no measurement.

    PYTHONPATH=. python benchmarks/decode_attention.py --out=benchmarks/results/decode_attention.md

Compiles one layer's attention of a Qwen3-1.7B-shaped student (16 heads over 8 of keys, 128 wide, bf16, 28 layers in one
cache) for a TPU that is not there (needs libtpu: requirements-aot.txt), all slots filled. Of XLA's form the compiler
estimates the cycles of every fusion. Of the kernel it gives the final VLIW schedule: a step over one block takes the
longer of its bundles (an overestimate: those of the first and the last step are in it) and the block's bytes at the
chip's published bandwidth. Neither knows the latency of memory. So that the two are not measured by two rulers, the
rate that the estimate of XLA's form comes to is printed, and that of one plain product with as many bytes of weights.

Then a whole rollout: slots read a row and layer, of XLA's form in stages and of the kernel in blocks. And for an H200
(jax's CUDA plugin, no driver), of which the compiler estimates no time, what each form holds beside the cache.
"""

import functools
import glob
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax.decode_attention import attend, pallas_tpu
from opd_jax.distributed import make_mesh
from opd_jax.distributed.topologies import find_topology
from opd_jax.divergence.aot import devices
from opd_jax.planning.hlo import read_work
from opd_jax.rollout.sampler import stage_widths

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "TPU topology of one chip")
_OUT = flags.DEFINE_string("out", None, "file for the tables")

LAYERS, HEADS, KV_HEADS, WIDTH = 28, 16, 8, 128
SLOT_BYTES = 2 * 2 * KV_HEADS * WIDTH  # keys and values of one layer
CALLS = ((64, 1024), (16, 4096))  # rows of a chip, slots; 64 rows of 4,096 slots are 30 GB: 16 on each of four chips
ROLLOUTS = ((512, 512), (512, 2048), (1024, 3072))  # prompt, new tokens


def compiled(mesh, rows: int, slots: int, implementation: str):
  """Every layer's attention, one after the other."""

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

  def layers(query, keys, values, seen):
    call = functools.partial(attend, implementation=implementation, filled=slots)
    return jax.lax.fori_loop(0, LAYERS, lambda layer, query: call(query, keys, values, layer, seen), query)

  stack = (LAYERS, rows, KV_HEADS)
  arrays = array(rows, 1, HEADS, WIDTH), array(*stack, WIDTH, slots), array(*stack, slots, WIDTH)
  return jax.jit(layers).lower(*arrays, array(rows, slots, dtype=bool)).compile()


def seconds(program, topology) -> float:
  """By the compiler's estimate of its fusions."""
  return read_work(program.as_text(), 1).cycles / topology.hertz


def product_rate(mesh, topology, rows: int, moved: int) -> float:
  """Bytes a second of a product of hidden states with weights of so many bytes, by the compiler's estimate."""
  sharding = NamedSharding(mesh, PartitionSpec())
  shapes = (rows, 2048), (moved // 4096, 2048)
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
  program = jax.jit(lambda hidden_rd, head_vd: (hidden_rd @ head_vd.T).max(axis=1)).lower(*arrays).compile()
  return moved / seconds(program, topology)


def bundles(folder: str) -> int:
  """Of the kernel whose schedule the compiler wrote last."""
  newest = max(glob.glob(f"{folder}/*decode_attention*schedule-analysis_final_bundles.txt"), key=os.path.getmtime)
  return int(re.search(r"total scheduled bundles:\s*(\d+)", Path(newest).read_text())[1])


def row(mesh, topology, folder: str, rows: int, slots: int) -> str:
  block = pallas_tpu.block_slots(slots, SLOT_BYTES)
  compiled(mesh, rows, slots, "pallas_tpu")
  issue, bandwidth = bundles(folder) / topology.hertz, topology.bandwidth
  kernel = rows * -(-slots // block) * max(issue, block * SLOT_BYTES / bandwidth)
  moved = rows * slots * SLOT_BYTES
  xla = seconds(compiled(mesh, rows, slots, "reference"), topology) / LAYERS
  product = product_rate(mesh, topology, rows, moved)
  return (
    f"| {rows} x {slots} | {xla * 1e6:.0f} ({moved / xla / 1e9:.0f} GB/s) | {block} | {issue * 1e6:.2f}, "
    f"{block * SLOT_BYTES / bandwidth * 1e6:.2f} | {kernel * 1e6:.0f} | {xla / kernel:.2f} | "
    f"{product / 1e9:.0f} GB/s, {moved / product * 1e6:.0f} | {xla * product / moved:.2f} |"
  )


def gpu_temporaries(rows: int, slots: int) -> list[float]:
  """MiB beside the cache: of XLA's form, of the kernel."""
  mesh = make_mesh((1, 1, 1), devices("h200"))
  with jax.set_mesh(mesh):
    programs = [compiled(mesh, rows, slots, form) for form in ("reference", "pallas_gpu")]
  return [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs]


def slots_read(prompt: int, new: int) -> tuple[float, float, float]:
  """Of a row and layer, mean over a rollout's tokens: filled, in stages, in blocks."""
  stages = stage_widths(prompt, new)
  block = pallas_tpu.block_slots(stages[-1], SLOT_BYTES)
  filled = range(prompt, prompt + new)
  staged = sum(next(stage for stage in stages if stage >= slots) for slots in filled)
  blocks = sum(-(-slots // block) * block for slots in filled)
  return sum(filled) / new, staged / new, blocks / new


def main(_):
  with tempfile.TemporaryDirectory() as folder:
    # Read by libtpu when it is loaded, which is when the first topology is asked for.
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    topology = find_topology(_TOPOLOGY.value)
    mesh = make_mesh((1, 1, 1), topology.devices())
    with jax.set_mesh(mesh):
      calls = [row(mesh, topology, folder, *call) for call in CALLS]
  rows, slots = CALLS[0]
  xla, kernel = gpu_temporaries(rows, slots)
  lines = [
    f"Predicted by the TPU compiler, not measured. {_TOPOLOGY.value}, jax {jax.__version__}, bf16, {HEADS} heads over "
    f"{KV_HEADS} of keys, {WIDTH} wide; microseconds a layer and token, all slots filled.",
    "",
    "| rows x slots | XLA (its bytes' rate) | block | a block: issue, bytes | kernel | XLA / kernel "
    "| rate of a product, kernel at it | XLA / that |",
    "|---|---|---|---|---|---|---|---|",
    *calls,
    "",
    "Slots read of a row and layer, mean over a rollout's tokens, without left padding (which only the kernel skips):",
    "",
    "| prompt + new | filled | XLA in stages | kernel in blocks |",
    "|---|---|---|---|",
    *(f"| {p} + {n} | " + " | ".join(f"{slots:.0f}" for slots in slots_read(p, n)) + " |" for p, n in ROLLOUTS),
    "",
    f"On an H200, {rows} x {slots}: one layer's keys and values are {rows * slots * SLOT_BYTES / 2**20:.0f} MiB. "
    f"Beside the cache XLA's form holds {xla:.0f} MiB, into which it copies the slots of one of the two before each "
    f"product (read, written, read: three times the bytes), and the kernel {kernel:.0f} MiB.",
  ]
  text = "\n".join(lines) + "\n"
  print(text)
  if _OUT.value:
    Path(_OUT.value).write_text(text)


if __name__ == "__main__":
  app.run(main)
