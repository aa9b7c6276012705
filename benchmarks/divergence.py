"""The divergence op's implementations side by side: value and both gradients of reverse KL.

    taskset -c 0 env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
      PYTHONPATH=. python benchmarks/divergence.py --shapes laptop,laptop_qwen_vocabulary
    PYTHONPATH=. python benchmarks/divergence.py --shapes qwen3_1.7b_from_8b --dtype bfloat16 \\
      --implementations reference,token_chunk,vocab_chunk,pallas_gpu --peak_tflops 989          # on an H200

Prints a Markdown table, and writes it to --out. On a CPU the time is CPU-seconds (of one pinned thread, above: wall
time on a shared machine measures the neighbours), elsewhere wall time of a finished step; the least of several.
`floor` is the time that the products alone would take without recomputation: at --peak_tflops, or at the rate of this
machine's own product [T, D] x [D, V]. `temporaries` are what the compiler allocates beside inputs and outputs; on
accelerators the float32 sum of the head's gradient is among them, and is listed apart.
`token_chunk:N` is token_chunk with N tokens a chunk at most.
"""

import platform
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from opd_jax.divergence import divergence, token_chunk
from opd_jax.divergence.shapes import SHAPES, Shape

_SHAPES = flags.DEFINE_list("shapes", ["laptop"], f"of {', '.join(SHAPES)}")
_IMPLEMENTATIONS = flags.DEFINE_list("implementations", ["reference", "token_chunk", "vocab_chunk"], "what to run")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of hidden states and heads")
_PEAK = flags.DEFINE_float("peak_tflops", None, "the device's, for the floor; measured by a product if not given")
_REPEATS = flags.DEFINE_integer("repeats", 4, "timed steps, after one that is not")
_OUT = flags.DEFINE_string("out", None, "file for the table")


def seconds(step, *arguments) -> float:
  """Least time of a step, compiled and run once before."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  jax.block_until_ready(step(*arguments))
  least = float("inf")
  for _ in range(_REPEATS.value):
    start = clock()
    jax.block_until_ready(step(*arguments))
    least = min(least, clock() - start)
  return least


def random_arrays(shape: Shape, dtype):
  """A student and a teacher whose logits have a standard deviation of 3, and equal weights."""
  keys = jax.random.split(jax.random.key(0), 4)
  arrays = []
  for (hidden_key, head_key), width in zip((keys[:2], keys[2:]), (shape.student_width, shape.teacher_width)):
    arrays.append(jax.random.normal(hidden_key, (shape.tokens, width), dtype))
    arrays.append(jax.random.normal(head_key, (shape.vocab, width), dtype) * dtype(3 / width**0.5))
  return (*arrays, jnp.full((shape.tokens,), 1 / shape.tokens, jnp.float32))


def step_of(implementation: str):
  """(value, gradients) of the named implementation."""
  name, _, tokens = implementation.partition(":")

  def loss(*arrays):
    return divergence(*arrays, kind="reverse_kl", implementation=name).loss

  if tokens:
    token_chunk.CPU = token_chunk.Sizes(1, int(tokens), token_chunk.CPU.block)
    token_chunk.ACCELERATOR = token_chunk.Sizes(1, int(tokens), token_chunk.ACCELERATOR.block)
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def floor_seconds(shape: Shape, arrays) -> float:
  """Time of the 4 products alone."""
  if _PEAK.value:
    return shape.least_flops / (_PEAK.value * 1e12)
  product = jax.jit(partial(jnp.einsum, "td,vd->tv", preferred_element_type=jnp.float32))
  rate = 2 * shape.tokens * shape.vocab * shape.student_width / seconds(product, *arrays[:2])
  return shape.least_flops / rate


def table(name: str) -> list[str]:
  """The lines of one shape's table."""
  shape, dtype = SHAPES[name], jnp.dtype(_DTYPE.value).type
  arrays = random_arrays(shape, dtype)
  floor = floor_seconds(shape, arrays)
  lines = [
    f"### {name}: T {shape.tokens}, V {shape.vocab}, D {shape.student_width}/{shape.teacher_width}, {_DTYPE.value}",
    "",
    f"floor {floor:.3g} s; float32 sum of the head's gradient {4 * shape.vocab * shape.student_width / 2**20:.0f} MiB",
    "",
    "| implementation | seconds | of dense | floor / time | temporaries MiB | of dense | gradient error |",
    "|---|---|---|---|---|---|---|",
  ]
  dense = None
  defaults = token_chunk.CPU, token_chunk.ACCELERATOR
  for implementation in _IMPLEMENTATIONS.value:
    token_chunk.CPU, token_chunk.ACCELERATOR = defaults
    step = step_of(implementation).lower(*arrays).compile()
    temporaries = step.memory_analysis().temp_size_in_bytes / 2**20
    d_head = np.asarray(step(*arrays)[1][1], np.float32)
    time_taken = seconds(step, *arrays)
    dense = dense or (time_taken, temporaries, d_head)
    error = np.abs(d_head - dense[2]).max() / np.abs(dense[2]).max()
    lines.append(
      f"| {implementation} | {time_taken:.3f} | {time_taken / dense[0]:.2f} | {floor / time_taken:.2f} "
      f"| {temporaries:.0f} | {temporaries / dense[1]:.3f} | {error:.1e} |"
    )
  return [*lines, ""]


def main(_):
  device = jax.devices()[0]
  unit = "CPU-seconds" if device.platform == "cpu" else "wall seconds"
  header = [
    f"Divergence op, value and both gradients of reverse KL. {device.device_kind} ({platform.machine()}), {unit}, "
    f"jax {jax.__version__}, Python {platform.python_version()}.",
    "`of dense` and the error (largest, relative to the largest entry of dW) are against the first row.",
    "",
  ]
  text = "\n".join(header + [line for name in _SHAPES.value for line in table(name)])
  print(text)
  if _OUT.value:
    with open(_OUT.value, "w") as file:
      file.write(text)


if __name__ == "__main__":
  app.run(main)
