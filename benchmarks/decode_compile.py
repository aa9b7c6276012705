"""What the decode program costs to compile for a TPU, and what of it is made of what.

    PYTHONPATH=. python benchmarks/decode_compile.py --out=benchmarks/results/decode_compile.md

Compiles for a TPU that is not there (needs libtpu: requirements-aot.txt): a student of Qwen3-0.6B's shape in bf16 that
writes --rows completions, at 28 and at 14 layers, without jax's compilation cache. `decode` is the sampler with prompts
of one token, which need no prefill: the loop over tokens alone; `rollout` is all of it. Of several compilations the
fastest, in seconds of wall time and of the CPU (all threads of the compiler); on a machine that does something else
only the latter mean anything.
"""

import functools
import platform
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax import models
from opd_jax.decode_attention import attend
from opd_jax.distributed import DECODING, make_mesh
from opd_jax.distributed.topologies import find_topology
from opd_jax.models import cache
from opd_jax.rollout import Sampling, sample_completions, sampler

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "TPU topology; the rows are split over its chips")
_LAYERS = flags.DEFINE_list("layers", ["28", "14"], "depths")
_ROWS = flags.DEFINE_integer("rows", 8, "completions at a time")
_PROMPT = flags.DEFINE_integer("prompt", 512, "tokens of a prompt")
_BUCKET = flags.DEFINE_integer("bucket", 2048, "tokens of a completion")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "of the sampling")
_REPEATS = flags.DEFINE_integer("repeats", 3, "compilations of each")
_OUT = flags.DEFINE_string("out", None, "file for the table")

VOCAB = 151_936
FORMS = ("kernel", "XLA in stages", "XLA, one stage")


def architecture(layers: int) -> models.Architecture:
  return models.Architecture.from_config(
    {
      "model_type": "qwen3",
      "vocab_size": VOCAB,
      "hidden_size": 1024,
      "intermediate_size": 3072,
      "num_hidden_layers": layers,
      "num_attention_heads": 16,
      "num_key_value_heads": 8,
      "head_dim": 128,
      "rms_norm_eps": 1e-6,
      "rope_theta": 1e6,
      "tie_word_embeddings": True,
    },
    "benchmark",
  )


def traced(mesh, layers: int, prompt: int):
  """The rollout program on abstract arguments."""
  model = jax.eval_shape(lambda: models.initialize(architecture(layers), jax.random.key(0), jnp.bfloat16))

  def array(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

  specs = models.parameter_specs(model, mesh, DECODING)
  params = jax.tree.map(lambda x, spec: array(x.shape, x.dtype, *spec), model.params, specs)
  prompts = [array((_ROWS.value, prompt), dtype, ("data", "fsdp")) for dtype in (jnp.int32, bool)]
  numbers = [array((), dtype) for dtype in (jnp.int32, jnp.uint32, jnp.uint32)]
  sampling = Sampling(1.0, 0, _TOP_P.value)
  static = dict(bucket=_BUCKET.value, sampling=sampling, eos_ids=(0,), vocab_size=VOCAB)
  arguments = (models.Model(params, model.config), *prompts, *numbers, array((_ROWS.value,), jnp.uint32))
  return jax.jit(functools.partial(sample_completions, **static)).trace(*arguments)


def seconds(mesh, layers: int, prompt: int, form: str) -> tuple[float, float]:
  """(wall, CPU) seconds of the fastest compilation, tracing included."""
  implementation = "auto" if form == "kernel" else "reference"
  stages = sampler.stage_widths if form != "XLA, one stage" else lambda prompt, bucket: (prompt - 1 + bucket,)
  found = []
  with (
    jax.set_mesh(mesh),
    mock.patch.object(cache, "attend", functools.partial(attend, implementation=implementation)),
    mock.patch.object(sampler, "stage_widths", stages),
  ):
    for _ in range(_REPEATS.value):
      jax.clear_caches()
      wall, cpu = time.perf_counter(), time.process_time()
      traced(mesh, layers, prompt).lower().compile()
      found.append((time.perf_counter() - wall, time.process_time() - cpu))
  return tuple(np.min(found, axis=0))


def main(_):
  jax.config.update("jax_enable_compilation_cache", False)
  topology = find_topology(_TOPOLOGY.value)
  mesh = make_mesh((topology.chips, 1, 1), topology.devices())
  depths = [int(layers) for layers in _LAYERS.value]
  ratio = f"{depths[0]} / {depths[-1]} layers"
  lines = [
    f"Compiled for {_TOPOLOGY.value} on a {platform.machine()} CPU, jax {jax.__version__}: Qwen3-0.6B's shape, bf16, "
    f"{_ROWS.value} rows, prompts of {_PROMPT.value}, {_BUCKET.value} new tokens, top-p {_TOP_P.value}. "
    f"Wall (CPU) seconds, the least of {_REPEATS.value}.",
    "",
    f"| program | attention | {' | '.join(f'{layers} layers' for layers in depths)} | {ratio} |",
    f"|---|---|{'---|' * (len(depths) + 1)}",
  ]
  seconds(mesh, 1, 1, "kernel")  # loads the compiler
  for program, prompt in (("decode", 1), ("rollout", _PROMPT.value)):
    for form in FORMS:
      taken = [seconds(mesh, layers, prompt, form) for layers in depths]
      cells = [f"{wall:.1f} ({cpu:.1f})" for wall, cpu in taken]
      lines.append(f"| {program} | {form} | {' | '.join(cells)} | {taken[0][1] / taken[-1][1]:.2f} |")
      print(lines[-1], flush=True)
  text = "\n".join(lines) + "\n"
  print(text)
  if _OUT.value:
    Path(_OUT.value).write_text(text)


if __name__ == "__main__":
  app.run(main)
