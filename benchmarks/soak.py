"""A long run watched from outside, and runs of the widest and narrowest shapes.

    python -m benchmarks.soak long --out=benchmarks/results/soak [--steps=2000]
    python -m benchmarks.soak shapes --out=benchmarks/results/shapes

`long`: the embedded task, a growing horizon, checkpoints and evaluations on the way. Twice a second: resident memory,
open files, threads, checkpoints. Once the first quarter is over, in which the last program is compiled, all of that
must stay as it is: memory within 3 %, files and threads within what one save holds open, compiles to the last one.

`shapes`: two steps each with one row and with 1,024, prompts of one token and of exactly the limit, a horizon of one,
all of them at once, and the vocabularies of Qwen2.5 0.5B and 7B (151,936 and 152,064) in models tiny otherwise.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags, logging

_STEPS = flags.DEFINE_integer("steps", 2000, "long: of the run", lower_bound=80)
_OUT = flags.DEFINE_string("out", None, "where to write OUT.json")

KEEP, EVERY = 3, 50  # checkpoints
GROWTH = 0.03  # of resident memory, from the second quarter to the last
HANDLES = 8  # files, and threads, that a save may hold open while it is looked at
VOCABULARIES = {"student": 151_936, "teacher": 152_064}


def train(folder: Path, *settings: str, config: str = "configs/quickstart.py", samples: list | None = None) -> int:
  """Status of `opd_jax.train` in `folder`/run; what /proc shows of it twice a second goes into `samples`."""
  command = [sys.executable, "-m", "opd_jax.train", f"--config={config}", f"--workdir={folder / 'run'}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  flags_of_it = [f"--config.{setting}" for setting in ("log.tensorboard=false", *settings)]
  with open(folder / "log.txt", "w") as log:
    run = subprocess.Popen([*command, *flags_of_it], env=environment, stdout=log, stderr=subprocess.STDOUT)
    while run.poll() is None:
      time.sleep(0.5)
      if samples is not None and (seen := _look(run.pid, folder / "run")):
        samples.append(seen)
  if run.returncode:
    print((folder / "log.txt").read_text()[-3000:], file=sys.stderr)
  return run.returncode


def _look(pid: int, workdir: Path) -> dict | None:
  """Memory (bytes), files, threads and checkpoints; None where the process has just ended."""
  try:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    files = len(os.listdir(f"/proc/{pid}/fd"))
    resident, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
  except (OSError, KeyError):
    return None
  steps = workdir / "metrics.jsonl"
  rows = steps.read_bytes().count(b"\n") if steps.exists() else 0
  saved = sum(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
  return {"step": rows, "resident": resident, "files": files, "threads": threads, "checkpoints": saved}


def long_run(steps: int) -> dict:
  with tempfile.TemporaryDirectory() as root:
    settings = [
      f"steps={steps}",
      "rollout.prompts_per_step=8",
      "horizon.start=8",
      "horizon.increment=8",
      f"horizon.every={steps // 40}",
      "horizon.max=32",
      "horizon.buckets=8,16,32",
      f"checkpoint.every={EVERY}",
      f"checkpoint.keep={KEEP}",
      f"eval.every={steps // 8}",
      "eval.prompts=16",
      "eval.batch=16",
      "log.fail_on_unplanned_compile=true",
    ]
    samples, started = [], time.monotonic()
    status = train(Path(root), *settings, samples=samples)
    seconds = time.monotonic() - started
    if status:
      raise SystemExit(f"the run ended with status {status}")
    rows = [json.loads(line) for line in Path(root, "run", "metrics.jsonl").read_text().splitlines()]
    saved = sorted(int(path.name) for path in Path(root, "run", "checkpoints").glob("*") if path.name.isdigit())
  quarters = [
    [seen for seen in samples if part * steps / 4 < seen["step"] <= (part + 1) * steps / 4] for part in range(4)
  ]
  median = {
    name: [statistics.median(seen[name] for seen in quarter) for quarter in quarters]
    for name in ("resident", "files", "threads")
  }
  most = {name: [max(seen[name] for seen in quarter) for quarter in quarters] for name in ("files", "threads")}
  settled = rows[steps // 4 :]
  flat = {
    "resident": median["resident"][3] <= (1 + GROWTH) * median["resident"][1],
    "files": most["files"][3] <= most["files"][1] + HANDLES,
    "threads": most["threads"][3] <= most["threads"][1] + HANDLES,
    "compiles": settled[0]["compiles"] == settled[-1]["compiles"] and not any(r["unplanned_compiles"] for r in rows),
    "checkpoints": max(seen["checkpoints"] for seen in samples) <= KEEP + 1
    and saved == [steps - EVERY * back for back in reversed(range(KEEP))],
  }
  return {
    "steps": [row["step"] for row in rows] == list(range(1, steps + 1)) and steps,
    "seconds": round(seconds),
    "looks": len(samples),
    "median_by_quarter": median,
    "most_by_quarter": most,
    "host_memory_peak": [settled[0]["host_memory_peak"], settled[-1]["host_memory_peak"]],
    "compiles": settled[-1]["compiles"],
    "checkpoints_left": saved,
    "flat": flat,
  }


CONFIG = """
from opd_jax.config import defaults

def get_config(arg=""):
  c = defaults()
  c.steps = 2
  c.student.path, c.teacher.path = "{folder}/student", "{folder}/teacher"
  c.data.path = "{folder}/prompts.jsonl"
  c.rollout.prompts_per_step = 8
  c.rollout.max_prompt = 16
  c.horizon.max = 8
  c.horizon.buckets = (8,)
  c.optimizer.learning_rate = 1e-3
  return c
"""

# name -> (tokens of every prompt, words of the vocabulary, settings)
SHAPES = {
  "one row": (4, 64, ("rollout.prompts_per_step=1",)),
  "1,024 rows": (4, 64, ("rollout.prompts_per_step=1024",)),
  "1,024 rows, 256 prompts": (4, 64, ("rollout.prompts_per_step=256", "rollout.samples_per_prompt=4")),
  "prompts of one token": (1, 64, ("rollout.max_prompt=1",)),
  "prompts of the limit": (1024, 64, ("rollout.max_prompt=1024",)),
  "a horizon of one": (4, 64, ("horizon.max=1", "horizon.start=1", "horizon.buckets=1")),
  "one of each": (
    1,
    64,
    ("rollout.prompts_per_step=1", "rollout.max_prompt=1", "horizon.max=1", "horizon.start=1", "horizon.buckets=1"),
  ),
  "the vocabularies of Qwen2.5": (4, VOCABULARIES["student"], ()),
}


def write_pair(folder: Path, prompt_tokens: int, words: int) -> None:
  """student/, teacher/ (its head padded further), prompts of one length and one that is a token too long."""
  import jax
  from tokenizers import Tokenizer, pre_tokenizers
  from tokenizers.models import WordLevel
  from transformers import PreTrainedTokenizerFast

  from opd_jax import models

  vocabulary = {"<eos>": 0, **{f"w{i}": i for i in range(1, words)}}
  tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<eos>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<eos>")
  for seed, (name, width) in enumerate((("student", 16), ("teacher", 32))):
    fields = {"model_type": "qwen3", "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    fields |= {
      "max_position_embeddings": 4096,
      "rms_norm_eps": 1e-6,
      "eos_token_id": 0,
      "initializer_range": 0.2,
      "tie_word_embeddings": True,
    }
    fields["vocab_size"] = words + VOCABULARIES[name] - VOCABULARIES["student"]
    architecture = models.Architecture.from_config(fields, name)
    models.save(models.initialize(architecture, jax.random.key(seed), "float32"), folder / name)
    fast.save_pretrained(folder / name)
  rows = [" ".join(f"w{1 + (i + j) % (words - 1)}" for j in range(prompt_tokens + (i == 0))) for i in range(64)]
  (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
  (folder / "config.py").write_text(CONFIG.format(folder=folder))


def shape(prompt_tokens: int, words: int, settings: tuple[str, ...]) -> dict:
  """What two steps were; raises SystemExit where they were not two, or had no loss."""
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root)
    write_pair(folder, prompt_tokens, words)
    samples = []
    longest = () if any("max_prompt" in setting for setting in settings) else (f"rollout.max_prompt={prompt_tokens}",)
    status = train(folder, *longest, *settings, config=str(folder / "config.py"), samples=samples)
    if status:
      raise SystemExit(f"{settings}: status {status}")
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [1, 2] and all(row["loss"] > 0 and row["skipped"] == 0 for row in rows), rows
  return {
    "tokens": [row["tokens"] for row in rows],
    "loss": [row["loss"] for row in rows],
    "resident": max(seen["resident"] for seen in samples),
  }


def main(arguments: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  match arguments[1:]:
    case ["long"]:
      answer = long_run(_STEPS.value)
    case ["shapes"]:
      answer = {}
      for name, of_it in SHAPES.items():
        answer[name] = shape(*of_it)
        print(name, answer[name], flush=True)
    case _:
      raise SystemExit("say which: long or shapes")
  print(json.dumps(answer, indent=2))
  if _OUT.value:
    Path(f"{_OUT.value}.json").write_text(json.dumps(answer, indent=2) + "\n")
  if not all(answer.get("flat", {}).values()):
    raise SystemExit("not flat")


if __name__ == "__main__":
  app.run(main)
