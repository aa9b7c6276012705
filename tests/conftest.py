"""Settings of every test process, and a tiny pair of models to run whole jobs with.

They are set before jax starts: eight simulated devices (a single-device test uses the first), one persistent
compilation cache for the whole suite, so that a second run compiles nothing twice, and code that is compiled soon
rather than well: of one device without LLVM's optimizations, and none of it by XLA's newer emitters of fusions, which
take as long as all the rest. Later jaxlibs have no others, and XLA ends a process at a flag that it does not know.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# XLA_FLAGS, also of processes that tests start.
COMPILED_SOON = "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {COMPILED_SOON}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network

import pytest  # noqa: E402  (jax reads its settings when it starts)
from hypothesis import HealthCheck, settings  # noqa: E402

# No property is timed: a machine that is busy breaks none.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
  """The folder of real data sets, where the machine has it."""
  folder = Path(os.environ.get("OPD_SHARED", ROOT.parent / "shared")) / "data"
  if not folder.is_dir():
    pytest.skip("the shared data sets are not on this machine (OPD_SHARED names their parent)")
  return folder


def train_tokenizer(texts, vocab_size: int, end: str = "<|endoftext|>"):
  """A byte-level BPE tokenizer of transformers, trained on `texts`; pad = eos."""
  from tokenizers import ByteLevelBPETokenizer
  from transformers import PreTrainedTokenizerFast

  bpe = ByteLevelBPETokenizer()
  bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=[end], show_progress=False)
  return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=end)


def write_model(folder: Path, vocab_size: int, width: int, seed: int, *, family: str = "qwen3", **fields) -> None:
  """A random checkpoint of ours in Hugging Face format, without a tokenizer."""
  import jax

  from opd_jax import models

  config = {
    "model_type": family,
    "vocab_size": vocab_size,
    "hidden_size": width,
    "intermediate_size": 2 * width,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 0,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    **fields,
  }
  architecture = models.Architecture.from_config(config, str(folder))
  models.save(models.initialize(architecture, jax.random.key(seed), "float32"), folder)


# What a clock, or what the process did before, writes into the rows of a run.
_TIMES = ("seconds", "compiles", "unplanned_compiles", "host_memory_peak", "cpu_seconds")


def timeless(rows: list[dict]) -> list[dict]:
  """Rows as every run of the same config writes them."""
  return [{name: value for name, value in row.items() if not name.startswith(_TIMES)} for row in rows]


def timeless_rows(path: Path) -> list[dict]:
  """Those of a jsonl file."""
  return timeless([json.loads(line) for line in path.read_text().splitlines()])


def saved_arrays(workdir: Path, step: int) -> dict:
  """Every array of a checkpoint by its name, such as `student/embed_vd`."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory) -> Path:
  """A folder with student/, teacher/ (wider, its vocabulary padded further) and prompts.jsonl."""
  folder = tmp_path_factory.mktemp("pair")
  questions = [
    f"{name} has {i} apples and buys {i * 7 % 13} more. How many?" for i in range(40) for name in ("Ada", "Bo")
  ]
  tokenizer = train_tokenizer(questions, 300)
  for name, padding, width, seed in (("student", 4, 32, 0), ("teacher", 20, 64, 1)):
    write_model(folder / name, len(tokenizer) + padding, width, seed)
    tokenizer.save_pretrained(folder / name)
  rows = [{"prompt": question, "answer": str(i)} for i, question in enumerate(questions)]
  (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


CONFIG_FILE = """
from opd_jax.config import defaults

def get_config(arg=""):
  c = defaults()
  c.steps = 4
  c.student.path = "{pair}/student"
  c.teacher.path = "{pair}/teacher"
  c.data.path = "{pair}/prompts.jsonl"
  c.rollout.prompts_per_step = 8
  c.rollout.max_prompt = 32
  c.horizon.kind = "progressive"
  c.horizon.max = 16
  c.horizon.start = 4
  c.horizon.increment = 4
  c.horizon.every = 1
  c.horizon.buckets = (8, 16)
  c.optimizer.learning_rate = 1e-3
  c.log.tensorboard = False
  return c
"""


@pytest.fixture(scope="session")
def tiny_config(tiny_pair) -> str:
  """A config file on the tiny pair: 4 steps, horizons 4 8 12 16, buckets 8 and 16."""
  path = tiny_pair / "config.py"
  path.write_text(CONFIG_FILE.format(pair=tiny_pair))
  return str(path)
