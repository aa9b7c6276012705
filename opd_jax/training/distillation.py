"""A run as other programs have it: an iterator over its steps. The commands use it as well.

distill(config, workdir) ─► Run ─► for row in run: ...     begins with the first step that is asked for
                             │
                             └─► evaluate, save, export    between two steps, and after the last
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from opd_jax import models
from opd_jax.config import Config, from_config_dict
from opd_jax.errors import InputError
from opd_jax.models import Model
from opd_jax.telemetry.rows import read_rows
from opd_jax.telemetry.workdir import more_rows
from opd_jax.training.loop import Audience, Loop, Row, begin, lacks_teacher
from opd_jax.training.run import OpenRun, open_run
from opd_jax.training.student import restore_student, whole
from opd_jax.training.teacher import load_teacher, marked_as


def distill(
  config: Config | ml_collections.ConfigDict | dict[str, Any],
  workdir: str | os.PathLike | None = None,
  *,
  on_begin: Callable[[], object] | None = None,
  on_step: Callable[[Row], object] | None = None,
  on_evaluation: Callable[[Row], object] | None = None,
  quiet: bool = False,
  devices: Sequence[jax.Device] | None = None,
) -> "Run":
  """A run, checked and ready to begin: tokenizers and prompts are read, no weight is, and nothing is written.

  Args:
    config: what `opd_jax.defaults()` gives, changed; fields that are left out have their defaults.
    workdir: the run's folder; one that holds a run of this config goes on from its newest checkpoint. None: a folder
      that is removed when the run is closed.
    on_begin: called once the workdir is this run's alone, in the process that writes to it; no model is read yet.
    on_step: called with each row of metrics.jsonl once it is written.
    on_evaluation: likewise of eval.jsonl.
    quiet: nothing is printed.
    devices: those of the mesh; None: all there are.

  Raises InputError, one line, for whatever can be wrong with the config, the models, the data or the workdir.
  """
  if not isinstance(config, Config):
    config = from_config_dict(config)
  with contextlib.ExitStack() as folder:
    if workdir is None:
      if jax.process_count() > 1:
        raise InputError("several processes make one run: give a workdir that all of them see")
      workdir = folder.enter_context(tempfile.TemporaryDirectory(prefix="opd_jax-"))
    opened = open_run(config, workdir, devices)
    heard = {"on_begin": on_begin, "on_step": on_step, "on_evaluation": on_evaluation, "quiet": quiet}
    return Run(opened, **heard, folder=folder.pop_all())


def train(opened: OpenRun) -> None:
  """All the steps of an opened run, from its newest checkpoint on; raises what they raise."""
  with Run(opened) as run:
    run.finish()


class Run:
  """The steps of a run, one after the other, as the rows of its metrics.jsonl; `distill` makes it.

      with distill(config, "runs/mine") as run:
        for row in run:
          print(row["step"], row["loss"])

  It begins with the first step that is asked for: models are loaded, programs compiled, a newest checkpoint is gone on
  from. Where `for` is left early, another `for` goes on. After the last step everything is evaluated, saved and closed
  as the config says. In a `with` it is also closed where the steps end by an exception; what was not saved by then is
  made again by the next run on the workdir. Every process of a cluster must make the same calls.

  Attributes:
    config, workdir: as given.
    stopped: `stop` ended it before its last step.
  """

  def __init__(
    self,
    opened: OpenRun,
    *,
    on_begin: Callable[[], object] | None = None,
    on_step: Callable[[Row], object] | None = None,
    on_evaluation: Callable[[Row], object] | None = None,
    quiet: bool = False,
    folder: contextlib.ExitStack | None = None,
  ):
    """`folder`: removes the workdir, where that is nobody else's."""
    self.config, self.workdir, self.stopped = opened.config, opened.workdir, False
    self._opened, self._folder, self._stopping = opened, folder, threading.Event()
    heard = (each or _ignore for each in (on_begin, on_step, on_evaluation))
    self._audience = Audience(*heard, quiet, self._stopping)
    self._writers = contextlib.ExitStack()
    self._loop: Loop | None = None  # while it goes on
    self._last: tuple[Model, int] | None = None  # the student after the last step, and which that was
    self._ended = False

  def __iter__(self) -> "Run":
    return self

  def __next__(self) -> Row:
    """The next step: `step, loss, horizon, bucket, tokens`, seconds and diagnostics, as docs/getting_started.md says.

    Raises TrainingError where the numbers went wrong, and InputError for a disk that is full and its like.
    """
    row = None
    if not self._ended:
      with self._at_work() as loop:
        if loop and not loop.over:
          loop.advance()
          loop.wait()
          row = loop.row
      if loop is None or loop.over:
        self._finish(loop)
    if row is None:
      raise StopIteration
    return row

  def finish(self) -> None:
    """All the steps that are left. They overlap, as `for` would not let them: while the devices are at one, the host
    prepares the next."""
    if not self._ended:
      with self._at_work() as loop:
        while loop and not loop.over:
          loop.advance()
      self._finish(loop)

  @property
  def student(self) -> Model:
    """As it is now, float32, sharded over the run's mesh; a copy that later steps leave alone. Of a run that does not
    go on: that of the last step, or of the newest checkpoint. InputError where there is neither."""
    if self._loop is None:
      return self._find("newest")[0]
    with self._at_work() as loop:
      loop.wait()
    return jax.tree.map(jnp.copy, whole(self._opened, loop.student))

  @property
  def metrics(self) -> list[Row]:
    """All rows of metrics.jsonl, those of earlier processes too."""
    return read_rows(self.workdir / "metrics.jsonl")

  @property
  def evaluations(self) -> list[Row]:
    """All rows of eval.jsonl, likewise."""
    return read_rows(self.workdir / "eval.jsonl")

  def evaluate(self, which: str = "newest") -> list[Row]:
    """Marks the student on the config's evaluation sets, and the teacher where it has no marks yet.

    Args:
      which: "newest", the student as it is now; "best" by `eval.keep_best`, or a step, of a checkpoint.

    Returns:
      The rows that eval.jsonl gets: `step, set, model, accuracy, stderr`, and what `evaluation.marks` describes.

    Raises InputError where the config has no evaluation set, or there is no such checkpoint.
    """
    evaluator, writes = self._opened.evaluator, jax.process_index() == 0
    if evaluator is None:
      raise InputError("config.eval.path is empty, and so is config.eval.sets: name a file of prompts with answers")
    if self._loop and which == "newest":
      with self._at_work() as loop:
        return loop.evaluate()
    student, step = self._find(which)
    with more_rows(self.workdir, writes=writes) as log:
      evaluations = evaluator(student, "student", step)
      if lacks_teacher(self.config, log):
        for name in self._opened.teachers:
          evaluations += evaluator(load_teacher(self._opened, name)[0], marked_as(name), step)
      for evaluation in evaluations:
        evaluation.write(log)
        self._audience.on_evaluation(evaluation.row)
    return [evaluation.row for evaluation in evaluations]

  def save(self) -> int:
    """A checkpoint of the run as it is now, beside those of `checkpoint.every`. Returns its step. InputError where the
    run does not go on, and cannot be written."""
    if self._last:
      return self._last[1]  # saved already
    if self._loop is None:
      raise InputError(f"the run in {self.workdir} does not go on, so that there is nothing to save: ask for a step")
    with self._at_work() as loop:
      loop.save()
    return loop.step

  def export(self, out: str | os.PathLike, which: str = "newest") -> int:
    """Writes a student as a Hugging Face folder that transformers loads, tokenizer and all.

    Args:
      out: a folder that does not exist yet, or is empty.
      which: as for `evaluate`.

    Returns:
      Its step.

    Raises InputError where `out` is taken, or there is no such checkpoint.
    """
    student, step = self._find(which)
    models.save(student, out, source=self._opened.student_path)
    return step

  def stop(self) -> None:
    """Ends the run early: with the step that is under way, or else one more, which is saved. Callable from a callback,
    a signal handler or another thread."""
    self._stopping.set()

  def close(self) -> None:
    """Closes files, the folder's lock and pools, and lets go of the models. A run goes on from its newest checkpoint
    when `distill` opens its workdir again."""
    self._end()
    self._last = None
    if self._folder:
      self._folder.close()

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, *error: Any) -> None:
    try:
      self._end(*error)
    finally:
      self.close()

  def _find(self, which: str) -> tuple[Model, int]:
    """A student, whole, and its step; what the next step would use up is not copied."""
    if which == "newest" and self._loop:
      with self._at_work() as loop:
        loop.settle()
      student, step = loop.student, loop.step
    elif which == "newest" and self._last:
      student, step = self._last
    else:
      return restore_student(self._opened, which)
    return whole(self._opened, student), step

  @contextlib.contextmanager
  def _at_work(self) -> Iterator[Loop | None]:
    """The loop, begun where it is not yet; None where nothing is left to do. An exception within ends the run."""
    try:
      if self._loop is None:
        self._loop = begin(self._opened, self._audience, self._writers)
      with self._loop.at_work() if self._loop else contextlib.nullcontext():
        yield self._loop
    except BaseException:
      self._end(*sys.exc_info())
      raise

  def _finish(self, loop: Loop | None) -> None:
    if loop:
      self._last, self.stopped = (loop.student, loop.step), loop.stopped
    self._end()

  def _end(self, *error: Any) -> None:
    """Closes what the run writes to; `error` as `__exit__` gets it."""
    self._loop, self._ended = None, True
    self._writers.__exit__(*(error or (None, None, None)))


def _ignore(*_: Row) -> None:
  """Nobody asked."""
