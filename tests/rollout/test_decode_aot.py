"""The rollout compiled for accelerators that are not there: its decode loop reads the cache where it lies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax import models
from opd_jax.distributed import DECODING, make_mesh
from opd_jax.distributed.topologies import find_topology
from opd_jax.divergence.aot import devices
from opd_jax.errors import InputError
from opd_jax.rollout import Sampling, sample_completions
from opd_jax.rollout.sampler import stage_widths

LAYERS, HEADS, ROWS, PROMPT, BUCKET = 3, 4, 32, 129, 512


def compiled(target: str, sizes: tuple[int, int, int], width: int):
  """The rollout of a small student with heads of `width`, on a mesh of so many devices."""
  try:
    chips = devices(target) if target == "h200" else find_topology(target).devices()
  except (InputError, RuntimeError, ImportError) as error:
    pytest.skip(f"no compiler for {target}: {str(error).splitlines()[0]} (`make test-aot` installs it)")
  config = models.Architecture.from_config(
    {
      "model_type": "qwen3",
      "vocab_size": 512,
      "hidden_size": 128,
      "intermediate_size": 256,
      "num_hidden_layers": LAYERS,
      "num_attention_heads": 2 * HEADS,
      "num_key_value_heads": HEADS,
      "head_dim": width,
    },
    "test",
  )
  mesh = make_mesh(sizes, chips[: int(np.prod(sizes))])
  model = jax.eval_shape(lambda: models.initialize(config, jax.random.key(0), jnp.bfloat16))

  def array(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

  specs = models.parameter_specs(model, mesh, DECODING)
  model = models.Model(jax.tree.map(lambda x, spec: array(x.shape, x.dtype, *spec), model.params, specs), config)
  prompts = [array((ROWS, PROMPT), dtype, ("data", "fsdp")) for dtype in (jnp.int32, bool)]
  numbers = [array((), dtype) for dtype in (jnp.int32, jnp.uint32, jnp.uint32)]
  static = dict(bucket=BUCKET, sampling=Sampling(1.0), eos_ids=(0,), vocab_size=512)
  write = jax.jit(functools.partial(sample_completions, **static))
  with jax.set_mesh(mesh):
    return write.lower(model, *prompts, *numbers, array((ROWS,), jnp.uint32)).compile()


@pytest.mark.parametrize(
  ("target", "sizes", "width", "kernel"),
  [
    ("v5e:2x2", (1, 1, 1), 128, True),
    ("v5e:2x2", (2, 1, 2), 128, True),
    ("v5e:2x2", (1, 1, 1), 64, False),  # XLA's form, in stages
    ("h200", (1, 1, 1), 64, True),
  ],
)
def test_no_step_and_no_layer_copies_the_cache(target, sizes, width, kernel):
  program = compiled(target, sizes, width)
  text = program.as_text()
  assert ("tpu_custom_call" in text or "gpu.triton" in text) == kernel
  rows, heads, slots = ROWS // (sizes[0] * sizes[1]), HEADS // sizes[2], stage_widths(PROMPT, BUCKET)[-1]
  loops = within_loops(text)
  for shape in ((width, slots), (slots, width)):
    cache = re.escape(f"bf16[{LAYERS},{rows},{heads},{shape[0]},{shape[1]}]")
    assert re.search(rf"= {cache}\S* dynamic-update-slice\(", "".join(loops.values()))
    assert not re.search(rf"= {cache}\S* (copy|copy-start|transpose|pad|concatenate)\(", "".join(loops.values()))
  # Nor is a layer of it cut out, or a stage of that: what a fusion slices within itself is read where it lies.
  outside = "".join(body for name, body in loops.items() if "fused" not in name)
  widths = "|".join(map(str, stage_widths(PROMPT, BUCKET)))
  assert not re.search(rf" = bf16\[(1,)?{rows},{heads},(({widths}),{width}|{width},({widths}))\]", outside)


def within_loops(text: str) -> dict[str, str]:
  """The computations of a compiled program that its loops' bodies reach, by name."""
  parts = re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\n((?:  .*\n)*)", text, flags=re.MULTILINE)
  computations, found = dict(parts), set()
  waiting = re.findall(r"\bbody=%?([\w.\-]+)", text)
  while waiting:
    name = waiting.pop()
    if name in computations and name not in found:
      found.add(name)
      waiting += re.findall(r"%([\w.\-]+)", " ".join(re.findall(r"\w+=(\{%.*?\}|%[\w.\-]+)", computations[name])))
  return {name: computations[name] for name in found}
