"""From an opened run to a trained student: load, go on from the newest checkpoint, step, evaluate, save.

    step k:  H = horizon(k) ─► bucket ─► prompts ─► rollout ─► update ─► metrics.jsonl ─► [evaluate] ─► [checkpoint]

A checkpoint comes last, so whatever it covers has been written, and rows after it are dropped and written again.
"""

import contextlib
import os
import resource
import signal
import sys
import threading
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from opd_jax import config as configs
from opd_jax import models
from opd_jax.distributed import any_process
from opd_jax.errors import InputError, TrainingError
from opd_jax.evaluation.questions import best_label
from opd_jax.hub import model_folder
from opd_jax.models import Model
from opd_jax.programs import unplanned_compiles
from opd_jax.telemetry.alarms import Alarms
from opd_jax.telemetry.console import StepProgress, number
from opd_jax.telemetry.workdir import RunLog, make_workdir, sole_writer, write_config
from opd_jax.training.audit import audit_pair
from opd_jax.training.checkpoint import Checkpointer, Progress, identity
from opd_jax.training.pipeline import Pipeline
from opd_jax.training.run import Run
from opd_jax.training.skips import first_broken, reason
from opd_jax.training.state import TrainState, abstract_state, init_state, make_optimizer
from opd_jax.training.teacher import load_frozen

_PROFILED = (3, 5)  # first and last step of log.profile, counted from the process's first: compiles are over by then
PREEMPTED = 75  # exit status after SIGTERM: saved, run the same command again (EX_TEMPFAIL of sysexits.h)


def train(run: Run) -> None:
  """Trains until `config.steps`, from the newest checkpoint of the workdir where there is one.

  On SIGTERM it saves the step that it is at and raises SystemExit(PREEMPTED). Raises TrainingError where
  `optimizer.skips` updates in a row were skipped, or the teacher in memory is no longer the one that was loaded.
  """
  writes = jax.process_index() == 0
  make_workdir(run.workdir)
  with sole_writer(run.workdir) if writes else contextlib.nullcontext():
    checkpoints = Checkpointer(run.workdir, run.config.checkpoint.keep, best_label(run.config.eval), repairs=True)
    for line in checkpoints.damaged:
      print(line)
    resume = checkpoints.latest()
    with RunLog(run.workdir, resume_step=resume, writes=writes, tensorboard=run.config.log.tensorboard) as log:
      # Only the writing process knows what has been evaluated; all must agree on what comes next.
      evaluated = any_process(any(row["step"] == resume and row["model"] == "student" for row in log.evaluations))
      if resume is not None and resume >= run.config.steps and (evaluated or not run.evaluator):
        print(f"{run.workdir} is at step {resume} of {run.config.steps}: nothing left to do")
      else:
        _go_on(run, log, checkpoints, writes)
    checkpoints.close()


def _go_on(run: Run, log: RunLog, checkpoints: Checkpointer, writes: bool) -> None:
  if writes:
    write_config(run.workdir, configs.to_dict(run.config))
  try:
    with _Termination() as termination, open(os.devnull, "w") as silence:
      _train(run, log, sys.stdout if writes else silence, checkpoints, termination)
  finally:
    run.table.stop()


def _train(run: Run, log: RunLog, stream: TextIO, checkpoints: Checkpointer, termination: "_Termination") -> None:
  config = run.config
  frozen, about_teacher = load_frozen(run)
  state, progress = _start(run, checkpoints)
  first = progress.step
  shown = {"every": config.log.every, "gap": config.rollout.int8}
  with StepProgress(config.steps, start=first, stream=stream, **shown) as console:
    steps = Pipeline(run, frozen, state, progress)
    if config.horizon.compile_ahead:
      steps.queue_programs()
    watch, pair = audit_pair(run, frozen.teacher, state.student, resumed=first > 0)
    console.pair(pair)
    if run.prompts.dropped_long:
      limits = f"rollout.max_prompt={config.rollout.max_prompt} tokens"
      if config.teacher_prompt:
        limits += f", or the teacher's longer than {config.teacher_prompt}"
      console.note(f"{run.prompts.dropped_long} prompts left out: longer than {limits}")
    if about_teacher:
      mean, largest = (number(value, 3) for value in about_teacher.values())
      console.note(f"teacher in int8: KL(full || int8) {mean} nats a token on the first prompts, at most {largest}")

    def evaluate(model: Model, name: str, step: int, teacher: Model | None = None) -> dict[str, float]:
      evaluations = run.evaluator(model, name, step, teacher)
      for evaluation in evaluations:
        log.evaluation(evaluation.row)
        log.samples(evaluation.samples)
        console.evaluation(evaluation.row)
      return {evaluation.label: evaluation.row["accuracy"] for evaluation in evaluations}

    if first == 0 and run.evaluator and config.eval.baseline:
      if config.teacher.path != configs.STUDENT:
        evaluate(frozen.teacher, "teacher", 0)
      evaluate(state.student, "student", 0, state.teacher or frozen.teacher)
    if first >= config.steps and run.evaluator:
      evaluate(state.student, "student", first, state.teacher or frozen.teacher)
    del state  # the pipeline's to use up
    unplanned, alarms = None, Alarms()

    def record(row: dict[str, Any] | None) -> None:
      if row is None:
        return
      nonlocal unplanned
      skips = steps.progress.skips
      why, way = reason(row, config.optimizer.skip_above) if row["skipped"] else ("", "")
      if why and skips == 1:
        console.note(f"step {row['step']}: update skipped: {why}")
      # What the first step compiles beside its programs (transfers, say) is the price of starting, not a surprise.
      unplanned = unplanned_compiles() if unplanned is None else unplanned
      row |= {"unplanned_compiles": unplanned_compiles() - unplanned, "host_memory_peak": _host_memory_peak()}
      if row["step"] == first + 1:
        row |= about_teacher
      log.step(row)
      console.step(row)
      for line in alarms(row):
        console.note(line)
      if row["unplanned_compiles"] and config.log.fail_on_unplanned_compile:
        raise InputError(
          f"step {row['step']}: XLA compiled something outside the program table "
          "(log.fail_on_unplanned_compile); JAX_LOG_COMPILES=1 names it"
        )
      if why and skips >= config.optimizer.skips:
        raise _stopped(row["step"], why, way, steps, checkpoints)

    if config.horizon.compile_ahead:
      steps.wait_for_programs(console.note)
    tracing, due = False, False
    while (step := steps.progress.step) < config.steps:
      tracing = _profile(run, step - first + 1, tracing)
      record(steps.advance())
      step += 1
      last, stop = step == config.steps, any_process(termination.requested)
      evaluates = run.evaluator and not stop and (last or _evaluation_is_due(config.eval, step))
      due |= step % config.checkpoint.every == 0
      saves = last or stop or due
      looks = watch and _canary_is_due(config.teacher.canary_every, step, evaluates or saves)
      if evaluates or saves or looks:
        record(steps.drain())
      if looks and (fault := watch.fault()):
        raise _unsound(step, fault, checkpoints)
      marks = {}
      if evaluates:
        marks = evaluate(steps.state.student, "student", step, steps.state.teacher or frozen.teacher)
      saves = saves or (evaluates and any_process(checkpoints.would_be_best(marks)))
      # While updates are skipped the weights may be what is wrong: they must not take the place of older ones.
      if saves and (last or stop or not steps.progress.skips):
        checkpoints.save(steps.state, steps.progress, marks)
        due = False
      if stop and not last:
        checkpoints.close()
        console.note(f"SIGTERM: step {step} is saved; the same command goes on from there")
        raise SystemExit(PREEMPTED)
    _profile(run, None, tracing)


def _stopped(step: int, why: str, way: str, steps: Pipeline, checkpoints: Checkpointer) -> TrainingError:
  """Saves what the last good update left, unless it is saved or broken. The line of what went wrong, and where."""
  good, broken = step - steps.progress.skips, first_broken(steps.state.student)
  if broken is None and (checkpoints.latest() or 0) < good:
    checkpoints.save(steps.state, steps.progress, {})
  checkpoints.close()
  saved, weights = checkpoints.latest(), f"; the student's {broken} is not finite" if broken else ""
  return TrainingError(
    f"{steps.progress.skips} updates in a row were skipped, steps {good + 1} to {step}: {why}{weights}; the newest "
    f"checkpoint is {'none' if saved is None else f'of step {saved}'}; {way}, a smaller "
    "optimizer.learning_rate may help"
  )


def _unsound(step: int, fault: str, checkpoints: Checkpointer) -> TrainingError:
  """The line of a teacher that is no longer what was loaded."""
  saved = checkpoints.latest()
  checkpoints.close()
  begins = "starts anew, as nothing was saved yet" if saved is None else f"goes on from step {saved}, which is saved"
  return TrainingError(
    f"step {step}: {fault}: its weights changed in memory; the same command loads it again and {begins}"
  )


def _evaluation_is_due(config: configs.Eval, step: int) -> bool:
  return step <= config.first or (config.every > 0 and step % config.every == 0)


def _canary_is_due(every: int, step: int, stops: bool) -> bool:
  """Also where the run stops to evaluate or to save, so that every mark and checkpoint is a sound teacher's."""
  return every > 0 and (stops or step % every == 0)


class _Termination:
  """Remembers a SIGTERM until the step is done. Handlers belong to the main thread: elsewhere nothing is caught."""

  requested = False

  def __enter__(self) -> "_Termination":
    self._previous = None
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._on_signal)
    return self

  def __exit__(self, *_: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def _on_signal(self, *_: object) -> None:
    self.requested = True


def _start(run: Run, checkpoints: Checkpointer) -> tuple[TrainState, Progress]:
  """The newest checkpoint, or the student as it came."""
  paths = {"teacher": run.teacher_path, "reference": run.reference_path}
  identities = {role: identity(model_folder(path, weights=True)) if path else "" for role, path in paths.items()}
  if checkpoints.latest() is None:
    student = models.load(run.student_path, dtype=jnp.float32, mesh=run.mesh)
    state = init_state(student, make_optimizer(run.config), follows=run.config.teacher.ema > 0)
    return state, Progress(0, run.config.seed, 0, run.horizon.init(), **identities)
  progress = checkpoints.progress()
  for role, path in paths.items():
    if getattr(progress, role) != identities[role]:
      raise InputError(f"{path} is not the {role} that {run.workdir} was trained with: its weights differ")
  return checkpoints.restore(_abstract_state(run)), progress


def _abstract_state(run: Run) -> TrainState:
  return abstract_state(run.pair.student, make_optimizer(run.config), run.mesh, follows=run.config.teacher.ema > 0)


def _host_memory_peak() -> int:
  """Most resident memory of this process so far, in bytes. Flat once every program has run, or something leaks."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _profile(run: Run, nth: int | None, tracing: bool) -> bool:
  """Starts and stops the trace of log.profile around steps of this process (None: there are no more). Whether it
  goes on."""
  if run.config.log.profile and nth == _PROFILED[0]:
    jax.profiler.start_trace(str(run.workdir / "profile"))
    return True
  if tracing and (nth is None or nth > _PROFILED[1]):
    jax.profiler.stop_trace()
    return False
  return tracing


def restore_student(run: Run, which: str = "newest") -> tuple[Model, int]:
  """The student of a checkpoint of the workdir (float32) and its step. `which`: "newest", "best" by `eval.keep_best`,
  or a step. InputError where there is none."""
  if not (run.workdir / "checkpoints").is_dir():
    raise InputError(f"{run.workdir} has no checkpoint: train first")
  checkpoints = Checkpointer(run.workdir, run.config.checkpoint.keep, best_label(run.config.eval))
  for line in checkpoints.damaged:
    print(line)
  step = checkpoints.find(which)
  state = checkpoints.restore(_abstract_state(run), step)
  checkpoints.close()
  return state.student, step
