"""The folder of a run while it runs: a step is on disk before the next but one starts.

    workdir/
      config.json  command.sh                    what was run
      canary.json                                what the teacher made of its own answers at the start
      metrics.jsonl                              one object a step
      eval.jsonl  samples.jsonl                  one object an evaluation; one object a graded sample
      tensorboard/                               the same numbers as events
      wandb/  wandb_id                           and for Weights & Biases, where it is asked for

`step` counts finished updates: the first row of `metrics.jsonl` is step 1, and an evaluation at step 0 is the student
before training. In a row of `metrics.jsonl`, `tokens` are the tokens generated in that step, `seconds_step` is its
wall time with everything in it, and the other `seconds_*` are disjoint parts of it: `seconds_compile_wait` is what it
waited for a compile that had begun in the background. `skipped` is 1 where the update was not made, 0 elsewhere.
`compiles` and `unplanned_compiles` count from the start of the process; `compiles_new` are those since the row before:
program, bucket, seconds, whether the executable was cached, whether it was compiled ahead.
"""

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from opd_jax.errors import InputError
from opd_jax.telemetry.events import EventFile
from opd_jax.telemetry.rows import check_file, drop_rows_after, encode_row, plain, read_rows, replace_file, writing
from opd_jax.telemetry.wandb_run import WandbRun

ROW_FILES = ("metrics.jsonl", "eval.jsonl", "samples.jsonl")


def check_folder(workdir: str | os.PathLike) -> None:
  """Raises InputError for what cannot be the folder of a run, there or not."""
  text = os.fspath(workdir)
  if not text or "\0" in text:
    raise InputError(f"the workdir {text!r} is no folder's name: give one such as runs/my_run")
  if re.match(r"\w+:/", text):  # pathlib makes one slash of two
    raise InputError(f"the workdir {text} is a URL; give a local folder (mount a bucket with gcsfuse)")
  if os.path.exists(text) and not os.path.isdir(text):
    raise InputError(f"the workdir {text} is a file: choose another --workdir")


def make_workdir(workdir: str | Path) -> Path:
  """Makes the folder (parents too) and tries a file in it. InputError where that cannot be done."""
  check_folder(workdir)
  path = Path(workdir)
  probe = path / f".writable.{os.getpid()}"
  with writing(path):
    path.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  return path


@contextlib.contextmanager
def sole_writer(workdir: str | Path) -> Iterator[None]:
  """Keeps a second run out of the folder while this one writes to it; the lock goes with the process."""
  with _tried_lock(workdir) as alone:
    if not alone:
      raise InputError(f"another run is writing to {workdir}: wait for it, or choose another --workdir")
    yield


@contextlib.contextmanager
def _tried_lock(workdir: str | Path) -> Iterator[bool]:
  """Whether the folder's lock could be had; it is held then."""
  lock = filelock.FileLock(Path(workdir) / ".lock")
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    pass
  except OSError as error:
    raise InputError(
      f"cannot lock {lock.lock_file}: {error.strerror or error}; remove it, or choose another --workdir"
    ) from error
  try:
    yield lock.is_locked
  finally:
    lock.release()


def write_config(workdir: str | Path, config: Mapping[str, Any]) -> Path:
  """config.json: the nested settings as they were resolved, defaults included."""
  path = make_workdir(workdir) / "config.json"
  replace_file(path, json.dumps(plain(config), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
  return path


def read_config(workdir: str | Path) -> dict[str, Any]:
  """The settings that `write_config` wrote, {} where there are none. InputError where the file is not JSON."""
  path = Path(workdir) / "config.json"
  check_file(path)
  try:
    config = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"cannot read {path}: {error}; mend it or choose another --workdir") from error
  if not isinstance(config, dict):
    raise InputError(f"{path} is not a JSON object; mend it or choose another --workdir")
  for name in ("horizon", "rollout", "optimizer", "objective"):
    if not isinstance(config.get(name, {}), dict):
      raise InputError(f"{path}: `{name}` is not an object; mend it or choose another --workdir")
  return config


def write_command(workdir: str | Path, module: str, arguments: Sequence[str]) -> Path:
  """command.sh: `python -m module arguments...` from the present folder, to paste or to execute; it resumes the run."""
  command = shlex.join([sys.executable, "-m", module, *arguments])
  path = make_workdir(workdir) / "command.sh"
  replace_file(path, f"#!/bin/sh\ncd {shlex.quote(os.getcwd())} &&\nexec {command}\n")
  with writing(path):
    path.chmod(0o755)
  return path


class RunLog:
  """Appends to the row files and to TensorBoard. Use it as a context manager.

  `resume_step` is the step of the checkpoint that the run goes on from: rows after it are dropped, for they will be
  written again. None starts afresh and empties the files. Nothing is buffered, so a killed process loses no row.
  `cuts`: False where somebody else writes to the files too: they are left as they are, and added to.

  Attributes:
    evaluations: the rows of eval.jsonl.
    wandb: a run there that gets the numbers as well, closed with the log; None until somebody gives one.

  On a pod only one host writes: the others pass `writes=False` and hold no files (`evaluations` is then empty, so a
  decision taken on it must be the writing host's, sent to all).
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    resume_step: int | None = None,
    writes: bool = True,
    tensorboard: bool = True,
    cuts: bool = True,
  ):
    self.evaluations: list[dict[str, Any]] = []
    self._files = {}
    self._tensorboard: EventFile | None = None
    self.wandb: WandbRun | None = None
    if not writes:
      return
    self.workdir = make_workdir(workdir)
    # Step -1 is before every row, the evaluation of step 0 included.
    last = -1 if resume_step is None else resume_step
    for name in ROW_FILES:
      path = self.workdir / name
      rows = drop_rows_after(path, last) if cuts else read_rows(path)
      if name == "eval.jsonl":
        self.evaluations = rows
      with writing(path):
        # Unbuffered: what a full disk refuses must not wait in a buffer and fail again in close().
        self._files[name] = open(path, "ab", buffering=0)
    if tensorboard:
      self._tensorboard = EventFile(self.workdir / "tensorboard", last + 1)

  def step(self, row: Mapping[str, Any]) -> None:
    """One finished update; `row` as the module's docstring says, with any further numbers."""
    self._append("metrics.jsonl", [row])
    self._scalars({f"train/{name}": value for name, value in row.items()}, row["step"])

  def evaluation(self, row: Mapping[str, Any]) -> None:
    """One evaluation of one set: `step, set, model` ("student", "teacher", or the path of another) `, k, temperature,
    accuracy, stderr` and what else `evaluation.marks.describe` gives."""
    self._append("eval.jsonl", [row])
    if self._files:
      self.evaluations.append(plain(row))
    # One set may be evaluated greedily and by samples at the same step: two curves, not one that jumps.
    prefix = f"eval/{row['set']}/{row['model']}/k{row.get('k', 1)}_t{row.get('temperature', 0)}"
    values = {name: row.get(name) for name in ("accuracy", "stderr", "maj")}
    values |= {f"pass_at_{tries}": value for tries, value in row.get("pass_at", {}).items()}
    self._scalars({f"{prefix}/{name}": value for name, value in values.items()}, row["step"])

  def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Graded completions: `step, set, model, prompt, completion, answer, correct`."""
    self._append("samples.jsonl", rows)

  def close(self, failed: bool = False) -> None:
    """`failed`: the run ends by an exception."""
    if self.wandb is not None:
      self.wandb.close(failed)
    for file in self._files.values():
      file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # What ends a run is told; that a full disk refuses the rest of the events as well is no news.
    with contextlib.suppress(InputError) if kind else contextlib.nullcontext():
      self.close(failed=kind is not None)

  def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    if not self._files:
      return
    data = memoryview("".join(encode_row(row) for row in rows).encode())
    with writing(self.workdir / name):
      if not (self.workdir / name).exists():
        raise InputError(f"{self.workdir / name} was removed while the run wrote to it: what follows would be lost")
      while data:  # an unbuffered write may take less than it was given
        data = data[self._files[name].write(data) :]

  def _scalars(self, values: Mapping[str, Any], step: int) -> None:
    sinks = [sink for sink in (self._tensorboard, self.wandb) if sink is not None]
    if not sinks:
      return
    numbers = {tag: plain(value) for tag, value in values.items() if tag.rsplit("/", 1)[-1] != "step"}
    numbers = {tag: value for tag, value in numbers.items() if isinstance(value, int | float)}
    for sink in sinks:
      sink.scalars(numbers, step)


@contextlib.contextmanager
def more_rows(workdir: str | Path, *, writes: bool = True) -> Iterator[RunLog]:
  """A log to add evaluations to, beside the rows that are there; also while a run, or another evaluation, goes on in
  the folder: what is half a row then is the beginning of theirs, and stays."""
  with contextlib.ExitStack() as stack:
    alone = writes and stack.enter_context(_tried_lock(make_workdir(workdir)))
    log = RunLog(workdir, resume_step=sys.maxsize, writes=writes, tensorboard=False, cuts=alone)
    yield stack.enter_context(log)
