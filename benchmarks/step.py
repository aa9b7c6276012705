"""Where a training step's time goes, and how far it is from the floor that its products set.

    taskset -c 0 env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
      python -m benchmarks.step --horizons=16,64,128,256 --out=benchmarks/results/step_cpu

A random pair (student 11.5 M, teacher 35.7 M, V = 32,768; 8 rows, prompts of 32), reverse KL over the whole
vocabulary, AdamW. The three programs of a step are timed as a run calls them; the parts of `update` are timed as
programs of their own, so `backward and optimizer` is what is left of it. On a CPU the time is CPU-seconds of one
pinned thread, elsewhere wall time; the least of several.

`floor` is the work that no implementation can leave out (a backward pass is two forward passes; the divergence is four
products with a head and recomputes none) over the rate of this machine's own product [1,024 x 1,024] x [1,024 x 1,024].
A decode step multiplies a few rows with every weight: its floor is the time to read the weights once a token, at the
rate at which this machine sums a large array.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from opd_jax import models
from opd_jax.config import Config, from_config_dict
from opd_jax.distributed import make_mesh
from opd_jax.objectives import Call, Reading, TokenWeights
from opd_jax.objectives import diverge as op
from opd_jax.planning.compiled import matmul_flops
from opd_jax.programs import ProgramTable
from opd_jax.scoring import score
from opd_jax.training.batch import Batch
from opd_jax.training.state import Frozen, init_state, make_optimizer
from opd_jax.training.step import define_programs

_HORIZONS = flags.DEFINE_list("horizons", ["16", "64", "128", "256"], "new tokens of a step; each is its own bucket")
_ROWS = flags.DEFINE_integer("rows", 8, "completions of a step")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of both models' computation")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls of each program, after one that is not")
_OUT = flags.DEFINE_string("out", None, "where to write OUT.md and OUT.json")

PROMPT, VOCABULARY = 32, 32_768
STUDENT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
TEACHER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}


def seconds(call) -> float:
  """Least time of a call that has been made once before."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  jax.block_until_ready(call())
  least = float("inf")
  for _ in range(_REPEATS.value):
    started = clock()
    jax.block_until_ready(call())
    least = min(least, clock() - started)
  return least


def random_model(sizes: dict, seed: int, dtype) -> models.Model:
  common = {"model_type": "qwen3", "vocab_size": VOCABULARY, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}
  common |= {"head_dim": sizes["hidden_size"] // 8, "max_position_embeddings": 4096, "tie_word_embeddings": True}
  architecture = models.Architecture.from_config({**common, **sizes}, "benchmark")
  return models.initialize(architecture, jax.random.key(seed), dtype)


def random_models(teacher_dtype) -> tuple[models.Model, models.Model]:
  """Student (float32) and teacher, on one device."""
  pair = random_model(STUDENT, 0, jnp.float32), random_model(TEACHER, 1, teacher_dtype)
  return jax.device_put(pair, NamedSharding(make_mesh((1, 1, 1), jax.devices()[:1]), PartitionSpec()))


def machine() -> tuple[float, float]:
  """FLOP/s of a large product, and bytes/s of reading."""
  x = jnp.ones((1024, 1024), jnp.dtype(_DTYPE.value))
  large = jnp.ones((1 << 26,), jnp.float32)
  product, read = jax.jit(lambda a: a @ a), jax.jit(jnp.sum)
  return 2 * 1024**3 / seconds(lambda: product(x)), large.nbytes / seconds(lambda: read(large))


def settings(H: int) -> Config:
  return from_config_dict(
    {
      "student": {"path": "random", "dtype": _DTYPE.value},
      "teacher": {"path": "random", "dtype": _DTYPE.value},
      "data": {"path": "random"},
      "rollout": {"prompts_per_step": _ROWS.value, "max_prompt": PROMPT},
      "horizon": {"max": H, "buckets": (H,)},
    }
  )


def rollout_arguments(H: int) -> tuple:
  """What a rollout reads beside the weights."""
  rows = np.arange(_ROWS.value, dtype=np.uint32)
  prompts_bp = np.random.default_rng(0).integers(0, VOCABULARY, (_ROWS.value, PROMPT)).astype(np.int32)
  return prompts_bp, np.ones(prompts_bp.shape, bool), np.int32(H), np.uint32(0), np.uint32(0), rows


def measure(H: int, student: models.Model, teacher: models.Model, rates: tuple[float, float]) -> dict:
  """{part: (seconds, floor)} of a step at horizon H."""
  config, batch = settings(H), rollout_arguments(H)
  table, (flops_rate, read_rate) = ProgramTable(make_mesh((1, 1, 1), jax.devices()[:1])), rates
  define_programs(table, config, (), VOCABULARY)
  state = init_state(jax.tree.map(jnp.copy, student), make_optimizer(config))

  def place():
    return table.run("decode_layout", 0, state.student)

  weights = place()

  def write():
    return table.run("rollout", H, weights, *batch)

  rollout = write()

  def learn():
    nonlocal state
    state, metrics = table.run("update", H, state, Frozen(teacher), Batch(rollout))
    return metrics

  context = rollout.prompts_bp, rollout.prompt_mask_bp, rollout.completions_bs, rollout.completion_mask_bs
  forward = jax.jit(score)
  student_bsd, teacher_bse = forward(weights, *context), forward(teacher, *context)
  weights_bs, head_vd = TokenWeights()(rollout.completions_bs, rollout.completion_mask_bs), weights.head_vd

  @jax.jit
  def diverge(student_bsd, head_vd, teacher_bse, head_ve):
    def loss(student_bsd, head_vd):
      readings = Reading(student_bsd, head_vd), Reading(teacher_bse, head_ve)
      return op(Call(weights_bs, "reverse_kl"), *readings, rollout.completions_bs, VOCABULARY).loss

    return jax.grad(loss, argnums=(0, 1))(student_bsd, head_vd)

  def flops(model):
    return matmul_flops(jax.make_jaxpr(score)(model, *context).jaxpr, 0)

  widths = 3 * student_bsd.shape[-1] + teacher_bse.shape[-1]
  read = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.params)) * H
  parts = {
    "decode layout": (seconds(place), 0.0),
    "rollout": (seconds(write), read / read_rate),
    "teacher forward": (seconds(lambda: forward(teacher, *context)), flops(teacher) / flops_rate),
    "student forward": (seconds(lambda: forward(weights, *context)), flops(weights) / flops_rate),
    "divergence and its gradient": (
      seconds(lambda: diverge(student_bsd, head_vd, teacher_bse, teacher.head_vd)),
      2 * _ROWS.value * H * VOCABULARY * widths / flops_rate,
    ),
  }
  update = seconds(learn)
  inside = [parts[name] for name in ("teacher forward", "student forward", "divergence and its gradient")]
  rest = update - sum(measured for measured, _ in inside), 2 * flops(weights) / flops_rate
  parts["student backward and optimizer"] = rest
  whole = update + parts["decode layout"][0] + parts["rollout"][0]
  parts["step"] = whole, sum(floor for _, floor in parts.values())
  return parts


def tables(measured: dict[int, dict], rates: tuple[float, float]) -> str:
  lines = [
    f"{_ROWS.value} rows, prompts of {PROMPT}, V = {VOCABULARY:,}, {_DTYPE.value}; "
    f"product {rates[0] / 1e9:.0f} GFLOP/s, reading {rates[1] / 1e9:.1f} GB/s; {jax.devices()[0].device_kind}",
    "",
    "| part | " + " | ".join(f"H = {H}: s | floor | floor / s" for H in measured) + " |",
    "|---|" + "---|---|---|" * len(measured),
  ]
  for part in next(iter(measured.values())):
    cells = (f"{s:.3f} | {floor:.3f} | {floor / s:.2f}" for s, floor in (parts[part] for parts in measured.values()))
    lines.append(f"| {part} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def publish(text: str, numbers: dict) -> None:
  """Prints a table, and writes it and its numbers where --out asks for them."""
  print(text)
  if _OUT.value:
    Path(f"{_OUT.value}.md").write_text(text)
    Path(f"{_OUT.value}.json").write_text(json.dumps(numbers, indent=2) + "\n")


def main(_) -> None:
  student, teacher = random_models(jnp.dtype(_DTYPE.value))
  rates = machine()
  measured = {int(H): measure(int(H), student, teacher, rates) for H in _HORIZONS.value}
  publish(tables(measured, rates), {"rates": rates, "horizons": measured})


if __name__ == "__main__":
  app.run(main)
