"""The steps of a run that goes on: load, go on from the newest checkpoint, step, evaluate, save.

    step k:  H = horizon(k) ─► bucket ─► prompts ─► rollout ─► update ─► metrics.jsonl ─► [evaluate] ─► [checkpoint]

A checkpoint comes last, so whatever it covers has been written, and rows after it are dropped and written again.
"""

import contextlib
import dataclasses
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from opd_jax import config as configs
from opd_jax.distributed import any_process
from opd_jax.errors import InputError, TrainingError
from opd_jax.evaluation.evaluator import Evaluation
from opd_jax.evaluation.questions import best_label, list_labels
from opd_jax.models import Model
from opd_jax.programs import unplanned_compiles
from opd_jax.telemetry.alarms import Alarms
from opd_jax.telemetry.console import StepProgress, number
from opd_jax.telemetry.record import row_label
from opd_jax.telemetry.wandb_run import WandbRun, check_wandb
from opd_jax.telemetry.workdir import RunLog, make_workdir, sole_writer, write_config
from opd_jax.training.audit import PairRow, TeacherWatch, audit_pair
from opd_jax.training.checkpoint import Checkpointer, Progress
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.run import OpenRun, check_workdir
from opd_jax.training.skips import first_broken, reason
from opd_jax.training.state import Frozen, TrainState
from opd_jax.training.student import start
from opd_jax.training.teacher import load_frozen, marked_as

Row = dict[str, Any]
_PROFILED = (3, 5)  # first and last step of log.profile, counted from the process's first: compiles are over by then


@dataclasses.dataclass(frozen=True)
class Audience:
  """Who hears of a run while it goes on, and may end it.

  Attributes:
    on_begin: called once the workdir is this run's alone, in the process that writes to it.
    on_step: called with each row of metrics.jsonl once it is written.
    on_evaluation: likewise of eval.jsonl.
    quiet: nothing is printed.
    stopping: set to end the run before its last step.
  """

  on_begin: Callable[[], object]
  on_step: Callable[[Row], object]
  on_evaluation: Callable[[Row], object]
  quiet: bool
  stopping: threading.Event


def begin(run: OpenRun, audience: Audience, stack: contextlib.ExitStack) -> "Loop | None":
  """Opens what the run writes to, loads its models and makes everything ready for the next step.

  Whatever must be closed afterwards goes to `stack`. None where nothing is left to do. Every process must call it.

  Raises InputError where the workdir cannot be written, is in use, or was begun with other models.
  """
  config, writes = run.config, jax.process_index() == 0
  if writes and config.log.wandb:
    check_wandb(config.log.wandb_mode)
  make_workdir(run.workdir)
  if writes:
    stack.enter_context(sole_writer(run.workdir))
    check_workdir(config, run.workdir)  # once more: another run may have begun in it since
  stream = sys.stdout if writes and not audience.quiet else stack.enter_context(open(os.devnull, "w"))
  checkpoints = Checkpointer(run.workdir, config.checkpoint.keep, best_label(config.eval), repairs=True)
  stack.callback(checkpoints.close)
  for line in checkpoints.damaged:
    print(line, file=stream)
  resume = checkpoints.latest()
  log = stack.enter_context(RunLog(run.workdir, resume_step=resume, writes=writes, tensorboard=config.log.tensorboard))
  # Only the writing process knows what has been evaluated; all must agree on what comes next.
  evaluated = any_process(any(row["step"] == resume and row.get("model") == "student" for row in log.evaluations))
  if resume is not None and resume >= config.steps and (evaluated or not run.evaluator):
    print(f"{run.workdir} is at step {resume} of {config.steps}: nothing left to do", file=stream)
    return None
  if writes:
    write_config(run.workdir, configs.to_dict(config))
    audience.on_begin()
    if config.log.wandb:
      log.wandb = _begin_wandb(run, resumed=resume is not None)
  stack.callback(run.table.stop)
  frozen, about_teacher = load_frozen(run)
  state, progress = start(run, checkpoints)
  shown = {"every": config.log.every, "gap": config.rollout.int8}
  console = stack.enter_context(StepProgress(config.steps, start=progress.step, stream=stream, **shown))
  loop = Loop(run, frozen, about_teacher, state, progress, log, checkpoints, console, audience)
  stack.callback(loop.stop_trace)
  return loop


def _begin_wandb(run: OpenRun, resumed: bool) -> WandbRun:
  c = run.config.log
  named = {"project": c.wandb_project, "name": c.wandb_name, "mode": c.wandb_mode}
  return WandbRun(run.workdir, **named, config=configs.to_dict(run.config), resumed=resumed)


class Loop:
  """The steps of a run, one call of `advance` each, and what is due between them; `begin` makes it.

  Every process of a cluster makes the same calls in the same order.

  Attributes:
    row: of the step that was written down last; None before that.
    stopped: it was ended before its last step, which is saved.
  """

  def __init__(
    self,
    run: OpenRun,
    frozen: Frozen,
    about_teacher: dict[str, float],
    state: TrainState,
    progress: Progress,
    log: RunLog,
    checkpoints: Checkpointer,
    console: StepProgress,
    audience: Audience,
  ):
    """Compiles what the first step needs, audits the pair, and marks both models where the run begins."""
    config = run.config
    self.row: Row | None = None
    self.stopped = False
    self._run, self._frozen, self._about_teacher = run, frozen, about_teacher
    self._log, self._checkpoints, self._console, self._audience = log, checkpoints, console, audience
    self._first, self._due, self._tracing, self._alarms = progress.step, False, False, Alarms()
    self._unplanned: int | None = None  # compiles that are none of the steps' own: until the first ends, all of them
    self._left = 0  # compiles when the caller had its turn
    self._steps = Pipeline(run, frozen, state, progress)
    if config.horizon.compile_ahead:
      self._steps.queue_programs()
    if log.wandb is not None:
      console.note(f"W&B        {log.wandb.place}")
    self._watches, pair = _audit(run, frozen, state.student, resumed=self._first > 0)
    console.pair(pair)
    if run.prompts.dropped_long:
      limits = f"rollout.max_prompt={config.rollout.max_prompt} tokens"
      if config.teacher_prompt:
        limits += f", or the teacher's longer than {config.teacher_prompt}"
      console.note(f"{run.prompts.dropped_long} prompts left out: longer than {limits}")
    if about_teacher:
      mean, largest = (number(value, 3) for value in about_teacher.values())
      console.note(f"teacher in int8: KL(full || int8) {mean} nats a token on the first prompts, at most {largest}")
    if self._first == 0 and run.evaluator and config.eval.baseline:
      if config.teacher.path != configs.STUDENT:
        self._mark_teachers()
      self._mark_student()
    if self.over and run.evaluator:
      self._mark_student()
    if config.horizon.compile_ahead:
      self._steps.wait_for_programs(console.note)

  @property
  def step(self) -> int:
    """Steps that were made, the one that is under way among them."""
    return self._steps.progress.step

  @property
  def over(self) -> bool:
    return self.stopped or self.step >= self._run.config.steps

  @property
  def student(self) -> Model:
    """After the newest update; the next `advance` uses its arrays up."""
    return self._steps.state.student

  @contextlib.contextmanager
  def at_work(self) -> Iterator[None]:
    """Around every call from outside: what the caller compiled since the last one does not count as the run's."""
    self._leave_out(unplanned_compiles() - self._left)
    yield
    self._left = unplanned_compiles()

  def advance(self) -> None:
    """Begins a step, writes down the one before it, and does what is due after it: evaluates, saves, stops.

    Raises TrainingError where `optimizer.skips` updates in a row were skipped, or the teacher in memory is no longer
    the one that was loaded.
    """
    config, steps = self._run.config, self._steps
    self._trace(self.step - self._first + 1)
    self._record(steps.advance())
    step = self.step
    last, stop = step == config.steps, any_process(self._audience.stopping.is_set())
    evaluates = self._run.evaluator and not stop and (last or _evaluation_is_due(config.eval, step))
    self._due |= step % config.checkpoint.every == 0
    saves = last or stop or self._due
    looks = self._watches and config.teacher.canary_every and step % config.teacher.canary_every == 0
    if evaluates or saves or looks:
      self.settle()
    marks = {}
    if evaluates:
      marks = {evaluation.label: evaluation.row["accuracy"] for evaluation in self._mark_student()}
    saves = saves or (evaluates and any_process(self._checkpoints.would_be_best(marks)))
    # While updates are skipped the weights may be what is wrong: they must not take the place of older ones.
    if saves and (last or stop or not steps.progress.skips):
      self._checkpoints.save(steps.state, steps.progress, marks)
      self._due = False
    self.stopped = stop and not last

  def wait(self) -> None:
    """For the step that is under way."""
    self._record(self._steps.drain())

  def settle(self) -> None:
    """Waits, and looks at the teacher: every mark and checkpoint shall be a sound one's. TrainingError where it is
    none."""
    self.wait()
    for watch in self._watches if self._run.config.teacher.canary_every else ():
      if fault := watch.fault():
        raise self._unsound(fault)

  def evaluate(self) -> list[Row]:
    """Marks the student as it is now, and the teacher where it has no marks; the run has an evaluation set. The rows
    that eval.jsonl gets."""
    self.settle()
    evaluations = self._mark_student()
    if lacks_teacher(self._run.config, self._log):
      evaluations += self._mark_teachers()
    return [evaluation.row for evaluation in evaluations]

  def save(self) -> None:
    """A checkpoint of the run as it is now, on disk on return."""
    self.settle()
    self._checkpoints.save(self._steps.state, self._steps.progress, {})
    self._checkpoints.wait()

  def stop_trace(self) -> None:
    """Ends the trace of log.profile, where one goes on."""
    if self._tracing:
      jax.profiler.stop_trace()
    self._tracing = False

  def _trace(self, nth: int) -> None:
    """Begins or ends the trace around the nth step of this process."""
    if self._run.config.log.profile and nth == _PROFILED[0]:
      jax.profiler.start_trace(str(self._run.workdir / "profile"))
      self._tracing = True
    elif nth > _PROFILED[1]:
      self.stop_trace()

  def _mark_student(self) -> list[Evaluation]:
    state, frozen = self._steps.state, self._frozen
    # Of several teachers it depends on a training row which one is asked; a question has none.
    return self._mark(state.student, "student", None if frozen.routes else state.teacher or frozen.teacher)

  def _mark_teachers(self) -> list[Evaluation]:
    marked = (self._mark(teacher, marked_as(name)) for name, teacher in self._frozen.teachers.items())
    return [evaluation for evaluations in marked for evaluation in evaluations]

  def _mark(self, model: Model, name: str, teacher: Model | None = None) -> list[Evaluation]:
    evaluations = self._run.evaluator(model, name, self.step, teacher)
    for evaluation in evaluations:
      evaluation.write(self._log)
      self._console.evaluation(evaluation.row)
      self._tell(self._audience.on_evaluation, evaluation.row)
    return evaluations

  def _record(self, row: Row | None) -> None:
    """Writes a step down, and tells of it. Raises what `advance` raises."""
    if row is None:
      return
    config, skips = self._run.config, self._steps.progress.skips
    why, way = reason(row, config.optimizer.skip_above) if row["skipped"] else ("", "")
    if why and skips == 1:
      self._console.note(f"step {row['step']}: update skipped: {why}")
    # What the first step compiles beside its programs (transfers, say) is the price of starting, not a surprise.
    if self._unplanned is None:
      self._unplanned = unplanned_compiles()
    unplanned = unplanned_compiles() - self._unplanned
    row |= {"unplanned_compiles": unplanned, "host_memory_peak": _host_memory_peak()}
    if row["step"] == self._first + 1:
      row |= self._about_teacher
    self._log.step(row)
    self._console.step(row)
    for line in self._alarms(row):
      self._console.note(line)
    self.row = row
    self._tell(self._audience.on_step, row)
    if unplanned and config.log.fail_on_unplanned_compile:
      raise InputError(
        f"step {row['step']}: XLA compiled something outside the program table "
        "(log.fail_on_unplanned_compile); JAX_LOG_COMPILES=1 names it"
      )
    if why and skips >= config.optimizer.skips:
      raise self._skipped(row["step"], why, way)

  def _tell(self, listener: Callable[[Row], object], row: Row) -> None:
    before = unplanned_compiles()
    listener(row)
    self._leave_out(unplanned_compiles() - before)

  def _leave_out(self, compiles: int) -> None:
    """Compiles of somebody else do not count from here on."""
    if self._unplanned is not None:
      self._unplanned += compiles

  def _skipped(self, step: int, why: str, way: str) -> TrainingError:
    """Saves what the last good update left, unless it is saved or broken. The line of what went wrong, and where."""
    steps, checkpoints = self._steps, self._checkpoints
    good, broken = step - steps.progress.skips, first_broken(steps.state.student)
    if broken is None and (checkpoints.latest() or 0) < good:
      checkpoints.save(steps.state, steps.progress, {})
    checkpoints.wait()
    saved, weights = checkpoints.latest(), f"; the student's {broken} is not finite" if broken else ""
    return TrainingError(
      f"{steps.progress.skips} updates in a row were skipped, steps {good + 1} to {step}: {why}{weights}; the newest "
      f"checkpoint is {'none' if saved is None else f'of step {saved}'}; {way}, a smaller "
      "optimizer.learning_rate may help"
    )

  def _unsound(self, fault: str) -> TrainingError:
    """The line of a teacher that is no longer what was loaded."""
    self._checkpoints.wait()
    saved = self._checkpoints.latest()
    begins = "starts anew, as nothing was saved yet" if saved is None else f"goes on from step {saved}, which is saved"
    return TrainingError(
      f"step {self.step}: {fault}: its weights changed in memory; the same command loads it again and {begins}"
    )


def lacks_teacher(config: configs.Config, log: RunLog) -> bool:
  """Whether a teacher of its own still lacks one of its marks, or one of several does, the same on all processes: only
  one knows what has been evaluated."""
  marked = {(row.get("model"), row_label(row)) for row in log.evaluations}
  wanted = {(marked_as(name), label) for name in config.teachers for label in list_labels(config.eval)}
  lacks = config.teacher.path != configs.STUDENT and not marked.issuperset(wanted)
  return any_process(lacks and jax.process_index() == 0)


def _audit(run: OpenRun, frozen: Frozen, student: Model, resumed: bool) -> tuple[list[TeacherWatch], list[PairRow]]:
  """`audit_pair` with every teacher; a row that is the same of all stands once."""
  watches, rows = [], {}
  for name, teacher in (frozen.teachers or {"": None}).items():
    watch, found = audit_pair(run, teacher, student, resumed=resumed, route=name)
    watches += [watch] if watch else []
    rows |= dict.fromkeys(found)
  return watches, list(rows)


def _evaluation_is_due(config: configs.Eval, step: int) -> bool:
  return step <= config.first or (config.every > 0 and step % config.every == 0)


def _host_memory_peak() -> int:
  """Most resident memory of this process so far, in bytes. Flat once every program has run, or something leaks."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
