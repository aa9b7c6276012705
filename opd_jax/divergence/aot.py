"""Compiles the op for an accelerator that is not there, and prints what the compiler says of it as one line of JSON.

    python -m opd_jax.divergence.aot TARGET IMPLEMENTATION TOKENS VOCAB STUDENT_WIDTH TEACHER_WIDTH

TARGET is a TPU topology (`v5e:2x2`; needs libtpu) or `h200` (needs jax's CUDA plugin, no driver). Nothing of the
program is executed. Exit status 3: the compiler for the target is not installed.
"""

import json
import os
import subprocess
import sys

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
  target, implementation, *sizes = arguments
  tokens, vocab, student_width, teacher_width = map(int, sizes)
  import jax
  import jax.numpy as jnp
  from jax.experimental import topologies
  from jax.sharding import SingleDeviceSharding

  from opd_jax.divergence.api import divergence

  try:
    if target == "h200":
      topology = topologies.get_topology_desc(topology_name="", platform="cuda", topology="1x1x1", target_config=_H200)
    else:
      topology = topologies.get_topology_desc(platform="tpu", topology_name=target)
  except (RuntimeError, ImportError, jax.errors.JaxRuntimeError) as error:
    print(f"no compiler for {target}: {error}".splitlines()[0], file=sys.stderr)
    return 3
  sharding = SingleDeviceSharding(topology.devices[0])

  def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  student = array(tokens, student_width), array(vocab, student_width)
  teacher = array(tokens, teacher_width), array(vocab, teacher_width)

  def loss(*arrays):
    return divergence(*arrays, kind="reverse_kl", implementation=implementation).loss

  # The kernels take their tiles from the device that is traced for.
  kind, cores = topology.devices[0].device_kind, getattr(topology.devices[0], "num_cores", 132)
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform=topology.devices[0].platform)
  types = (jax.sharding.AxisType.Auto,)
  around = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), types, abstract_device=device))
  with around:
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = step.lower(*student, *teacher, array(tokens, dtype=jnp.float32)).compile()
  text, memory = compiled.as_text(), compiled.memory_analysis()
  if dump := os.environ.get("OPD_AOT_TEXT"):
    with open(dump, "w") as file:
      file.write(text)
  cost = compiled.cost_analysis() or {}
  report = {
    "device": topology.devices[0].device_kind,
    "custom_calls": text.count('custom_call_target="tpu_custom_call"') + text.count("__gpu$xla.gpu.triton"),
    "temporary_bytes": memory.temp_size_in_bytes,
    "optimal_seconds_of_one_trip": cost.get("optimal_seconds"),
  }
  print(json.dumps(report))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
