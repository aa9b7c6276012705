"""Compiles the op for an accelerator that is not there, and prints what the compiler says of it as one line of JSON.

    python -m opd_jax.divergence.aot TARGET IMPLEMENTATION TOKENS VOCAB STUDENT_WIDTH TEACHER_WIDTH [TENSOR]

TARGET is a TPU topology (`v5e:2x2`; needs libtpu) or `h200` (needs jax's CUDA plugin, no driver). With TENSOR the op
runs on all chips of the topology, a mesh (data, tensor) of that many devices along `tensor`, and TOKENS are those of
all; otherwise on one chip. Nothing of the program is executed. Exit status 3: the compiler for the target is not
installed.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter

# Read when jax and libtpu start: parallel processes may load libtpu, nothing asks a metadata server or writes a log.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

# Of the compiled program's text: an operation that communicates, once where it is started in the background.
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")

# An H200 as XLA's GPU compiler wants it described (kernel.md, section 4).
_H200 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA"  dnn_version_info { major: 9 minor: 10 }  runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200 141GB HBM3e" """


def main(arguments: list[str]) -> int:
  if not _ENVIRONMENT.items() <= os.environ.items():
    # Importing this package has started jax already: begin again.
    command = [sys.executable, "-m", "opd_jax.divergence.aot", *arguments]
    return subprocess.run(command, env=os.environ | _ENVIRONMENT).returncode
  target, implementation, *numbers = arguments
  sizes, tensor = tuple(map(int, numbers[:4])), int(numbers[4]) if numbers[4:] else None
  import jax

  try:
    chips = devices(target)
  except (RuntimeError, ImportError, jax.errors.JaxRuntimeError) as error:
    print(f"no compiler for {target}: {error}".splitlines()[0], file=sys.stderr)
    return 3
  start = time.perf_counter()
  compiled = _compiled(chips, implementation, sizes, tensor)
  seconds = time.perf_counter() - start
  text = compiled.as_text()
  if dump := os.environ.get("OPD_AOT_TEXT"):
    with open(dump, "w") as file:
      file.write(text)
  memory = compiled.memory_analysis()
  report = {
    "device": chips[0].device_kind,
    "devices": len(chips) if tensor else 1,
    "custom_calls": text.count('custom_call_target="tpu_custom_call"') + text.count("__gpu$xla.gpu.triton"),
    "collectives": dict(Counter(_COLLECTIVE.findall(text))),
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "trace_and_compile_seconds": round(seconds, 1),
  }
  print(json.dumps(report))
  return 0


def devices(target: str) -> list:
  """Of a TPU topology, or one `h200`, to compile for. Raises what jax does where there is no compiler for them."""
  from jax.experimental import topologies

  if target == "h200":
    return topologies.get_topology_desc(
      topology_name="", platform="cuda", topology="1x1x1", target_config=_H200
    ).devices
  return topologies.get_topology_desc(platform="tpu", topology_name=target).devices


def _compiled(devices, implementation: str, sizes: tuple[int, int, int, int], tensor: int | None):
  """Value and both gradients of reverse KL in bf16, compiled for one of the devices or for all of them."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  from opd_jax.divergence.api import divergence

  grid = np.array(devices[:1]).reshape(1, 1) if tensor is None else np.array(devices).reshape(-1, tensor)
  mesh = jax.sharding.Mesh(grid, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  tokens, vocab, student_width, teacher_width = sizes

  def array(axis, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(axis)))

  student = array("data", tokens, student_width), array("tensor", vocab, student_width)
  teacher = array("data", tokens, teacher_width), array("tensor", vocab, teacher_width)
  weights = array("data", tokens, dtype=jnp.float32)

  def loss(*arrays):
    whole = None if tensor is None else mesh
    return divergence(*arrays, kind="reverse_kl", implementation=implementation, mesh=whole).loss

  # The kernels take their tiles from the mesh's devices, Pallas for GPUs its compiler.
  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*student, *teacher, weights).compile()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
