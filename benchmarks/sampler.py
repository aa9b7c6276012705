"""The sampler alone: tokens a CPU-second once compiled, and what compiling costs, at several horizons.

    taskset -c 0 env JAX_PLATFORMS=cpu XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
      PYTHONPATH=. python benchmarks/sampler.py --out=benchmarks/results/sampler

A student of 11.5 million random parameters (Qwen3: V 32,768, D 256, 4 layers, 4 heads of 64 over 2 of keys, MLP 768,
tied head, float32), 8 rows, prompts of 32 tokens, no end of sequence: every row writes exactly H tokens. CPU-seconds
of one pinned thread, prefill included; the least of several calls, because wall time on a shared machine measures the
neighbours. `full width` attends all P + H slots from the first token on. With --int8 each case is measured with the
layers' weights in int8 too, and `gap` is the mean distance, in nats, of the tokens' log-probs from those of the weights
that were rounded. Writes OUT.json and OUT.md.
"""

import functools
import json
import platform
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags

from opd_jax import models
from opd_jax.divergence import scores
from opd_jax.rollout import Rollout, Sampling, sample_completions, sampler
from opd_jax.scoring import score

_HORIZONS = flags.DEFINE_list("horizons", ["32", "64", "128", "256", "2048"], "new tokens")
_FULL = flags.DEFINE_list("full_width", ["2048"], "horizons at which the same without stages is measured too")
_SETTINGS = flags.DEFINE_list("settings", ["sampled", "greedy", "top_p"], "of these")
_REPEATS = flags.DEFINE_integer("repeats", 5, "calls, after one that is not timed; 2 from 1,024 tokens on")
_INT8 = flags.DEFINE_bool("int8", False, "measure each case with the layers' weights in int8 too")
_ROWS = flags.DEFINE_integer("rows", 8, "completions at once")
_OUT = flags.DEFINE_string("out", None, "path of the two files, without extension")

PROMPT = 32
SAMPLING = {"sampled": Sampling(1.0), "greedy": Sampling(0.0), "top_p": Sampling(1.0, 0, 0.9)}
CONFIG = {
  "model_type": "qwen3",
  "vocab_size": 32_768,
  "hidden_size": 256,
  "intermediate_size": 768,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 64,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "initializer_range": 0.02,
}


def measure(full: models.Model, horizon: int, setting: str, staged: bool, int8: bool) -> dict:
  """One row of the table."""
  model = jax.block_until_ready(jax.jit(models.quantize)(full)) if int8 else full
  shape = _ROWS.value, PROMPT
  prompts_bp = np.asarray(jax.random.randint(jax.random.key(1), shape, 0, CONFIG["vocab_size"]), np.int32)
  numbers = (np.int32(horizon), np.uint32(0), np.uint32(0), np.arange(_ROWS.value, dtype=np.uint32))
  arguments = (model, prompts_bp, np.ones(shape, bool), *numbers)
  static = dict(bucket=horizon, sampling=SAMPLING[setting], eos_ids=(), vocab_size=CONFIG["vocab_size"])
  widths = sampler.stage_widths if staged else lambda prompt, bucket: (prompt - 1 + bucket,)
  started = time.process_time()
  with mock.patch.object(sampler, "stage_widths", widths):
    write = jax.jit(functools.partial(sample_completions, **static)).lower(*arguments).compile()
  compile_seconds = time.process_time() - started
  least = float("inf")
  for _ in range(1 + (_REPEATS.value if horizon < 1024 else min(2, _REPEATS.value))):
    started = time.process_time()
    rollout = jax.block_until_ready(write(*arguments))
    tokens = int(rollout.completion_mask_bs.sum())
    least = min(least, time.process_time() - started)
  assert tokens == _ROWS.value * horizon
  return {
    "horizon": horizon,
    "setting": setting,
    "cache": "staged" if staged else "full width",
    "layers": "int8" if int8 else "float32",
    "gap": float(f"{gap(full, rollout, SAMPLING[setting].temperature or 1.0):.2g}"),
    "tokens_per_cpu_second": round(tokens / least),
    "cpu_seconds": round(least, 4),
    "compile_cpu_seconds": round(compile_seconds, 2),
  }


@functools.partial(jax.jit, static_argnums=2)
def gap(model: models.Model, rollout: Rollout, temperature: float) -> jax.Array:
  """Nats a token between the log-probs that were written and those of `model`, all tokens being valid."""
  context = (rollout.prompts_bp, rollout.prompt_mask_bp, rollout.completions_bs, rollout.completion_mask_bs)
  hidden_td, head_vd = score(model, *context).reshape(-1, model.config.hidden_size), model.head_vd
  ids = rollout.completions_bs.reshape(-1)
  found = scores(hidden_td, head_vd, hidden_td, head_vd, sampled_ids=ids, temperature=temperature)
  return jax.numpy.abs(found.student_logprob - rollout.behaviour_logprob_bs.reshape(-1)).mean()


def table(rows: list[dict]) -> str:
  lines = [
    f"{_ROWS.value} rows, prompts of {PROMPT} tokens, 11.5M parameters, float32, one thread of a "
    f"{platform.machine()} CPU, jax {jax.__version__}, Python {platform.python_version()}.",
    "",
    "| H | tokens | cache | layers | gap | tokens per CPU-second | CPU-seconds | compile, CPU-seconds |",
    "|---|---|---|---|---|---|---|---|",
  ]
  lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
  return "\n".join(lines) + "\n"


def main(_):
  model = models.initialize(models.Architecture.from_config(CONFIG, "benchmark"), jax.random.key(0), "float32")
  horizons = list(map(int, _HORIZONS.value))
  cases = [(h, setting, True) for setting in _SETTINGS.value for h in horizons if setting == "sampled" or h < 1024]
  cases += [(int(h), "sampled", False) for h in _FULL.value if "sampled" in _SETTINGS.value]
  rows = []
  for case in cases:
    for int8 in (False, True)[: 1 + _INT8.value]:
      rows.append(measure(model, *case, int8))
      print(rows[-1], flush=True)
  print(table(rows))
  if _OUT.value:
    with open(_OUT.value + ".json", "w") as file:
      json.dump(rows, file, indent=2)
    with open(_OUT.value + ".md", "w") as file:
      file.write(table(rows))


if __name__ == "__main__":
  app.run(main)
