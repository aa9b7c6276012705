"""From an opened run to a trained student: load, go on from the newest checkpoint, step, evaluate, save.

    step k:  H = horizon(k) ─► bucket ─► prompts ─► rollout ─► update ─► metrics.jsonl ─► [evaluate] ─► [checkpoint]

A checkpoint comes last, so whatever it covers has been written, and rows after it are dropped and written again.
"""

import dataclasses
import os
import resource
import signal
import sys
import threading
import time
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax import config as configs
from opd_jax import models
from opd_jax.data import order, pad_left
from opd_jax.distributed import any_process, place_rows
from opd_jax.errors import InputError
from opd_jax.horizon import bucket_for
from opd_jax.hub import model_folder
from opd_jax.models import Model
from opd_jax.programs import unplanned_compiles
from opd_jax.telemetry.console import StepProgress
from opd_jax.telemetry.metrics import to_floats
from opd_jax.telemetry.workdir import RunLog, make_workdir, write_config
from opd_jax.training.checkpoint import Checkpointer, Progress, identity
from opd_jax.training.run import Run
from opd_jax.training.state import TrainState, abstract_state, init_state, make_optimizer

_PROFILED = (3, 5)  # first and last step of log.profile, counted from the process's first: compiles are over by then
PREEMPTED = 75  # exit status after SIGTERM: saved, run the same command again (EX_TEMPFAIL of sysexits.h)


def train(run: Run) -> None:
  """Trains until `config.steps`, from the newest checkpoint of the workdir where there is one.

  On SIGTERM it saves the step that it is at and raises SystemExit(PREEMPTED).
  """
  config, writes = run.config, jax.process_index() == 0
  make_workdir(run.workdir)
  checkpoints = Checkpointer(run.workdir, config.checkpoint.keep)
  resume = checkpoints.latest()
  with RunLog(run.workdir, resume_step=resume, writes=writes, tensorboard=config.log.tensorboard) as log:
    if writes:
      write_config(run.workdir, configs.to_dict(config))
    # Only the writing process knows what has been evaluated; all must agree on what comes next.
    evaluated = any_process(any(row["step"] == resume and row["model"] == "student" for row in log.evaluations))
    if resume is not None and resume >= config.steps and (evaluated or not run.evaluator):
      print(f"{run.workdir} is at step {resume} of {config.steps}: nothing left to do")
    else:
      with _Termination() as termination, open(os.devnull, "w") as silence:
        _train(run, log, sys.stdout if writes else silence, checkpoints, termination)
  checkpoints.close()


def _train(run: Run, log: RunLog, stream: TextIO, checkpoints: Checkpointer, termination: "_Termination") -> None:
  config = run.config
  teacher = models.load(run.teacher_path, dtype=jnp.dtype(config.teacher.dtype), mesh=run.mesh)
  state, progress = _start(run, checkpoints)
  first = progress.step
  with StepProgress(config.steps, start=first, every=config.log.every, stream=stream) as console:
    if run.prompts.dropped_long:
      limit = config.rollout.max_prompt
      console.note(f"{run.prompts.dropped_long} prompts left out: longer than rollout.max_prompt={limit} tokens")

    def evaluate(model: Model, name: str, step: int) -> None:
      for evaluation in run.evaluator(model, name, step):
        log.evaluation(evaluation.row)
        log.samples(evaluation.samples)
        console.evaluation(evaluation.row)

    if first == 0 and run.evaluator and config.eval.baseline:
      evaluate(teacher, "teacher", 0)
      evaluate(state.student, "student", 0)
    if first >= config.steps and run.evaluator:
      evaluate(state.student, "student", first)
    unplanned = None
    while progress.step < config.steps:
      started = time.perf_counter()
      _profile(run, progress.step - first + 1)
      state, progress, row = take_step(run, state, teacher, progress)
      # What the first step compiles beside its programs (transfers, say) is the price of starting, not a surprise.
      unplanned = unplanned_compiles() if unplanned is None else unplanned
      row |= {
        "compiles": len(run.table.compiles),
        "unplanned_compiles": unplanned_compiles() - unplanned,
        "host_memory_peak": _host_memory_peak(),
        "seconds_step": time.perf_counter() - started,
      }
      log.step(row)
      console.step(row)
      if row["unplanned_compiles"] and config.log.fail_on_unplanned_compile:
        raise InputError(
          f"step {progress.step}: XLA compiled something outside the program table "
          "(log.fail_on_unplanned_compile); JAX_LOG_COMPILES=1 names it"
        )
      last, stop = progress.step == config.steps, any_process(termination.requested)
      if run.evaluator and not stop and (last or _evaluation_is_due(config.eval, progress.step)):
        evaluate(state.student, "student", progress.step)
      if last or stop or progress.step % config.checkpoint.every == 0:
        checkpoints.save(state, progress)
      if stop and not last:
        checkpoints.close()
        console.note(f"SIGTERM: step {progress.step} is saved; the same command goes on from there")
        raise SystemExit(PREEMPTED)


def _evaluation_is_due(config: configs.Eval, step: int) -> bool:
  return step <= config.first or (config.every > 0 and step % config.every == 0)


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
  optimizer = make_optimizer(run.config)
  teacher = identity(model_folder(run.teacher_path, weights=True))
  if checkpoints.latest() is None:
    student = models.load(run.student_path, dtype=jnp.float32, mesh=run.mesh)
    return init_state(student, optimizer), Progress(0, run.config.seed, 0, run.horizon.init(), teacher)
  progress = checkpoints.progress()
  if progress.teacher != teacher:
    raise InputError(f"{run.teacher_path} is not the teacher that {run.workdir} was trained with: its weights differ")
  return checkpoints.restore(abstract_state(run.pair.student, optimizer, run.mesh)), progress


def take_step(
  run: Run, state: TrainState, teacher: Model, progress: Progress
) -> tuple[TrainState, Progress, dict[str, Any]]:
  """One rollout and one update. Returns the next state and progress, and the step's row of metrics."""
  config, k = run.config, progress.step
  H = run.horizon(k, progress.horizon_state)
  bucket = bucket_for(H, config.horizon.ladder())
  seconds = _Stopwatch()

  take = config.rollout.prompts_per_step
  chosen = order(len(run.prompts), config.seed, progress.data_position, take)
  prompts = pad_left([run.prompts.token_ids[i] for i in chosen], config.rollout.max_prompt)
  prompts_bp, prompt_mask_bp, rows_r = place_rows(run.mesh, (*prompts, np.arange(config.rows, dtype=np.uint32)))
  place = run.table.compile("decode_layout", 0, state.student)
  seconds.lap("compile")
  student = jax.block_until_ready(place(state.student))
  seconds.lap("reshard")
  arguments = (student, prompts_bp, prompt_mask_bp, np.int32(H), np.uint32(config.seed), np.uint32(k), rows_r)
  write = run.table.compile("rollout", bucket, *arguments)
  seconds.lap("compile")
  rollout = jax.block_until_ready(write(*arguments))
  del student, arguments  # the update needs the room
  seconds.lap("rollout")

  learn = run.table.compile("update", bucket, state, teacher, rollout)
  seconds.lap("compile")
  state, metrics = learn(state, teacher, rollout)
  numbers = to_floats(metrics)
  seconds.lap("update")

  row = {"step": k + 1, **numbers, "horizon": H, "bucket": bucket, "tokens": int(numbers["tokens"])}
  horizon_state = run.horizon.update(progress.horizon_state, numbers)
  progress = dataclasses.replace(
    progress, step=k + 1, data_position=progress.data_position + take, horizon_state=horizon_state
  )
  return state, progress, row | seconds.laps


class _Stopwatch:
  """Seconds by part. `laps["seconds_x"]` sums the wall time of the laps called x; `laps["cpu_seconds"]` is the
  processor time of this process, all threads, apart from what the compiler took: that is `cpu_seconds_compile`."""

  def __init__(self):
    self.laps: dict[str, float] = {"cpu_seconds": 0.0, "cpu_seconds_compile": 0.0}
    self._wall, self._cpu = time.perf_counter(), time.process_time()

  def lap(self, name: str) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    self.laps[f"seconds_{name}"] = self.laps.get(f"seconds_{name}", 0.0) + wall - self._wall
    self.laps["cpu_seconds_compile" if name == "compile" else "cpu_seconds"] += cpu - self._cpu
    self._wall, self._cpu = wall, cpu


def _host_memory_peak() -> int:
  """Most resident memory of this process so far, in bytes. Flat once every program has run, or something leaks."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _profile(run: Run, nth: int) -> None:
  """Starts and stops the trace of log.profile around the steps of this process."""
  if run.config.log.profile and nth == _PROFILED[0]:
    jax.profiler.start_trace(str(run.workdir / "profile"))
  if run.config.log.profile and nth == _PROFILED[1] + 1:
    jax.profiler.stop_trace()


def restore_student(run: Run) -> tuple[Model, int]:
  """The student of the workdir's newest checkpoint (float32) and its step. InputError where there is none."""
  if not (run.workdir / "checkpoints").is_dir():
    raise InputError(f"{run.workdir} has no checkpoint: train first")
  checkpoints = Checkpointer(run.workdir, run.config.checkpoint.keep)
  if checkpoints.latest() is None:
    raise InputError(f"{run.workdir} has no finished checkpoint: train first")
  state = checkpoints.restore(abstract_state(run.pair.student, make_optimizer(run.config), run.mesh))
  step = checkpoints.latest()
  checkpoints.close()
  return state.student, step
