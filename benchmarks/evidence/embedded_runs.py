"""Runs of `opd_jax.train` on the embedded tasks at several maximum lengths, kept in a study's ledger.

whole chain        a3=3b1=4c4=3 ... x2=v .     97 tokens, end of sequence included
maximum T = 64     a3=3b1=4 ... p0=2           rollouts, training and answers end there; right is what equals the
                                               chain as far as it goes
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.ledger import Ledger
from benchmarks.evidence.study import Order
from benchmarks.runs import Curve, Job, read_curve, train_all
from opd_jax import arithmetic
from opd_jax.telemetry.record import read_run

WHOLE = 97  # tokens of a chain, end of sequence included
STEPS = 40
RUNGS, QUICK_RUNGS = (0.1, 0.25, 0.5, 1), (0.25, 1)
_FIRST_STEPS, _LAST_STEPS = 3, 5  # over which the divergence by position is averaged
_QUESTIONS = 128  # at each evaluation, of the task's 256
_POPD = 10  # grows to the maximum in so many parts, as in configs/quickstart.py


@dataclasses.dataclass(frozen=True)
class Setting:
  """One run.

  Attributes:
    variant: of the embedded task, `uniform` or `late`.
    length: maximum T, tokens.
    method: its name.
    flags: what it changes in configs/quickstart.py at that length.
    seed: of models, prompts and samples.
    steps: of training.
    rungs: shares of T that programs are compiled for.
  """

  variant: str
  length: int
  method: str
  flags: tuple[str, ...]
  seed: int
  steps: int
  rungs: tuple[float, ...]

  @property
  def name(self) -> str:
    return f"{self.variant} {self.length} {self.method} seed {self.seed}"

  def job(self, folder: Path) -> Job:
    part = max(1, round(self.length / _POPD))
    buckets = sorted({math.ceil(share * self.length) for share in self.rungs})
    flags = {
      "seed": self.seed,
      "steps": self.steps,
      "horizon.max": self.length,
      "horizon.start": part,
      "horizon.increment": part,
      "horizon.buckets": ",".join(map(str, buckets)),
      "horizon.compile_ahead": False,  # or cpu_seconds would hold what is compiled in the background
      "eval.path": _questions(self.seed, self.length, folder),
      "eval.prompts": _QUESTIONS,
      "eval.batch": _QUESTIONS,
      "eval.every": 5,
      "eval.first": 15,
      "log.tensorboard": False,
    }
    written = tuple(f"--config.{field}={value}" for field, value in flags.items())
    config = f"--config=configs/quickstart.py:{self.variant}@{self.seed}"
    return Job(f"{self.name} {self.steps} steps".replace(" ", "-"), (config, *written, *self.flags))


@functools.cache
def _questions(seed: int, length: int, folder: Path) -> Path:
  """A file of the task's evaluation prompts whose answers are cut at a length; both variants have the same."""
  rows = Path(arithmetic.outline(f"arithmetic:uniform@{seed}/eval.jsonl")).read_text().splitlines()
  cut = [row | {"answer": row["answer"][:length]} for row in map(json.loads, rows)]
  path = folder / "questions" / f"seed{seed}-{length}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in cut))
  return path


def complete(settings: Sequence[Setting], order: Order, ledger: Ledger) -> None:
  """Runs what the ledger does not have, and puts it there as it ends; all in the order of `settings` at last."""
  folder = order.workdirs.absolute() / ("quick" if order.quick else "full")
  missing = {(job := setting.job(folder)).name: (setting, job) for setting in settings if setting.name not in ledger}
  for variant, seed in dict.fromkeys((setting.variant, setting.seed) for setting, _ in missing.values()):
    arithmetic.make(f"arithmetic:{variant}@{seed}/student")  # and the teacher, on all cores, before runs share them

  def done(job: Job, workdir: Path) -> None:
    setting = missing[job.name][0]
    curve = read_curve(workdir)
    ledger.put(setting.name, {**dataclasses.asdict(curve), **_by_position(workdir)})
    print(f"{setting.name}: {curve.accuracy[-1]:.3f}", flush=True)

  train_all([job for _, job in missing.values()], folder, order.workers, done)
  ledger.arrange(setting.name for setting in settings)


def _by_position(workdir: Path) -> dict[str, list[float | None]]:
  """Mean divergence a token in each eighth of the reach, over the first steps and over the last."""
  rows = [row["loss_by_position"] for row in read_run(workdir).metrics]

  def mean(rows: list[list[float | None]]) -> list[float | None]:
    known = [[value for value in values if value is not None] for values in zip(*rows, strict=True)]
    return [statistics.fmean(values) if values else None for values in known]

  return {"kl_first": mean(rows[:_FIRST_STEPS]), "kl_last": mean(rows[-_LAST_STEPS:])}


def curve_of(run: dict[str, Any]) -> Curve:
  return Curve(**{field.name: run[field.name] for field in dataclasses.fields(Curve)})
