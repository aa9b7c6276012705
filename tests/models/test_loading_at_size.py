"""A checkpoint of 2 GB: what loading it costs in memory, which only a model of some size can show."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from opd_jax import models

# 1.005e9 parameters in the shape of a small Qwen3: an embedding that is far larger than any other tensor.
CONFIG = {
  "model_type": "qwen3",
  "vocab_size": 151936,
  "hidden_size": 1024,
  "intermediate_size": 3072,
  "num_hidden_layers": 54,
  "num_attention_heads": 16,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path):
  """bfloat16 in five files with an index; taken away afterwards, for pytest keeps the folders of three sessions."""
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  table = models.parameter_table(models.Architecture.from_config(CONFIG, "test"))
  shapes = {key: parameter.stored_shape for parameter in table.values() for key in parameter.keys}
  rng = np.random.default_rng(0)
  # Random signs, low exponent bits and mantissas: finite, around 1. Tensors are windows of one pool of them.
  bits = rng.integers(0, 2**64, 2**26, dtype=np.uint64).view(np.uint16)
  bits &= 0x81FF
  bits |= 0x3C00
  pool = bits.view(ml_dtypes.bfloat16)
  files = [{} for _ in range(5)]
  for i, (key, shape) in enumerate(shapes.items()):
    first = int(rng.integers(0, len(pool) - np.prod(shape)))
    files[i % 5][key] = pool[first : first + np.prod(shape)].reshape(shape)
  names = [f"model-{i + 1:05d}-of-00005.safetensors" for i in range(5)]
  for name, tensors in zip(names, files):
    save_file(tensors, tmp_path / name)
  weight_map = {key: name for name, tensors in zip(names, files) for key in tensors}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  yield tmp_path
  for name in names:
    (tmp_path / name).unlink()


LOAD = """
import json, re, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, numpy as np
from safetensors.numpy import load_file
from opd_jax import models
from opd_jax.distributed import make_mesh, place_rows

def peak():
  # VmHWM and not ru_maxrss: the latter starts at the peak of the process that this one was started from.
  return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

folder, mesh = sys.argv[1], make_mesh((1, 8, 1))
jax.block_until_ready(place_rows(mesh, np.zeros((8, 8))))
empty = peak()
model = models.load(folder, dtype=jnp.bfloat16, mesh=mesh)
loaded = peak()
leaves = jax.tree.leaves(model)
stored = load_file(folder + "/model-00003-of-00005.safetensors")
up = next(key for key in stored if key.endswith("up_proj.weight"))
found = model.params["layers"]["mlp"]["up_fd"][int(up.split(".")[2])]
print(json.dumps(dict(
  bytes=sum(leaf.nbytes for leaf in leaves),
  above_empty=loaded - empty,
  dtypes=sorted({str(leaf.dtype) for leaf in leaves}),
  devices=[len(leaf.sharding.device_set) for leaf in leaves],
  equal=np.array_equal(found, stored[up]),
)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak of memory from /proc")
def test_peak_memory_of_loading_is_little_more_than_the_model(folder):
  """On eight devices of one host, all of the model has to be there once; a second copy would make the ratio 2."""
  run = subprocess.run([sys.executable, "-c", LOAD, folder], capture_output=True, text=True, timeout=300)
  assert run.returncode == 0, run.stderr
  seen = json.loads(run.stdout.splitlines()[-1])
  assert seen["bytes"] > 2e9 and seen["dtypes"] == ["bfloat16"] and set(seen["devices"]) == {8} and seen["equal"]
  assert seen["above_empty"] < 1.6 * seen["bytes"], seen
