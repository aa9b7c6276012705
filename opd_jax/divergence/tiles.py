"""Block sizes of the kernels: one table by accelerator generation and widths.

              rows (vocabulary)        beside a tile, in VMEM, on a TPU:
           |---------------------|     statistics   the operands of both models, twice
    tokens |  a tile of logits   |     gradients    the student's operands and two float32 blocks of dW, twice, and
           |---------------------|                  the float32 dH of a whole chunk

The size of the vocabulary changes only how many tiles there are: one larger than what a device holds of it is cut to
that by the kernel. Sizes were chosen by the TPU
compiler's static schedule (benchmarks/results/divergence_tpu.md); the GPU's were never measured.
"""

from typing import NamedTuple

from jax.experimental.pallas import tpu as pltpu


class TpuTile(NamedTuple):
  """A kernel's tile on a TPU."""

  tokens: int
  rows: int
  vmem_bytes: int  # scoped VMEM to ask for
  cores: int  # that share a kernel's parallel grid axis


class GpuTile(NamedTuple):
  """A Triton program's product: powers of two."""

  tokens: int
  rows: int
  width: int


_MIB = 1 << 20
# TPU generation -> (VMEM to ask for, cores, rows by bytes of a hidden state: student's and teacher's together).
# v5p has 64 MiB of VMEM, v5e and v6e 128. An unknown generation gets what fits them all.
_TPU = {
  "v5e": (100 * _MIB, 1, ((14 << 10, (1024, 512)), (20 << 10, (512, 512)))),
  "v5p": (60 * _MIB, 2, ((14 << 10, (512, 512)), (20 << 10, (512, 256)))),
  "v6e": (110 * _MIB, 1, ((14 << 10, (1024, 1024)), (20 << 10, (512, 512)))),
}
_ANY_TPU = (60 * _MIB, 1, ((14 << 10, (512, 512)), (20 << 10, (512, 256))))
_SMALLEST = (128, 128)
H200 = GpuTile(64, 128, 64)


def tpu_generation() -> str | None:
  """Generation of the TPU that is traced for: the current mesh's devices, else the default device; None if neither is.

  A program that is compiled on another machine says so by an abstract mesh (`aot`).
  """
  try:
    return pltpu.get_tpu_info().chip_version.value
  except ValueError:  # what is traced for is no TPU, or nobody said that it is
    return None


def tpu_tile(generation: str | None, student_width: int, teacher_width: int, itemsize: int) -> TpuTile:
  """The tile of a call.

  Args:
    generation: `v5e`, `v5p`, `v6e`; anything else gets a tile that fits them all.
    student_width: Ds.
    teacher_width: Dt.
    itemsize: bytes of an entry of the wider of the two models' arrays.
  """
  vmem, cores, by_bytes = _TPU.get(generation, _ANY_TPU)
  state = (student_width + teacher_width) * itemsize
  tokens, rows = next((tile for most, tile in by_bytes if state <= most), _SMALLEST)
  return TpuTile(tokens, rows, vmem, cores)
