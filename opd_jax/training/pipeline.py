"""One step after the other, without a gap: the devices have the next rollout before the host asks how the last went.

    devices   │ rollout k           │ update k        │ rollout k + 1       │ update k + 1
    host      │ (waits for tokens)  │ dispatches k+1, then waits for the     │
              │                     │ metrics of k    │ (waits for tokens)  │
    seconds   │ reshard │ rollout   │ update          │

The host waits at three places, each time with the next program already queued on the devices: for the weights in
decode layout, for the tokens, for the metrics. A step ends where its metrics arrive.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from opd_jax.data import pad_left
from opd_jax.distributed import place_rows
from opd_jax.errors import TrainingError
from opd_jax.programs import Compile
from opd_jax.telemetry.metrics import Metrics, to_floats
from opd_jax.training.ahead import too_late
from opd_jax.training.batch import Answers, Batch, Prompts, draw_rows, lay_out_answers
from opd_jax.training.checkpoint import Progress
from opd_jax.training.programs import Architectures, Program, first_needs, list_programs
from opd_jax.training.run import OpenRun
from opd_jax.training.skips import parameter_names
from opd_jax.training.state import Frozen, TrainState

_OF_A_STEP = ("rollout", "update", "probe")  # the programs that a new bucket needs


class Pipeline:
  """The steps of a run.

  Attributes:
    state: after the newest update; its arrays may still be on their way.
    progress: likewise.
  """

  def __init__(self, run: OpenRun, frozen: Frozen, state: TrainState, progress: Progress):
    self.state, self.progress = state, progress
    self._run, self._frozen = run, frozen
    self._running: tuple[Metrics, dict[str, Any]] | None = None  # an update, and its row so far
    self._repeat: tuple[Any, ...] = ()  # under debug.nans: program, bucket and arguments of that update, but the state
    self._row: dict[str, Any] | None = None  # of a step that has ended
    self._compiles = 0  # that rows have told of
    self._clock: _Stopwatch | None = None  # None while no step is timed

  def queue_programs(self) -> None:
    """Has everything that the rest of the run needs compiled in the background, what is needed first first."""
    self._run.table.compile_ahead((p.name, p.bucket, p.arguments) for p in self._programs())

  def wait_for_programs(self, say: Callable[[str], None]) -> None:
    """Waits for those buckets that will be needed before the compiler is through, and says so.

    A step takes at least as long as its rollout, and a rollout changes nothing: it is run twice and timed. The time
    counts as compiling in the first step's row.
    """
    run, table, first = self._run, self._run.table, self.progress.step
    needs = list(first_needs(run.config, first, self.progress.horizon_state).items())
    if len(needs) < 2:
      return
    self._clock = _Stopwatch()
    (present, _), *coming = needs
    programs = self._programs()

    def compile_for(trains: str, bucket: int) -> None:
      for program in programs:
        if program.bucket == bucket and program.name in ("rollout", trains):
          table.compile(program.name, bucket, *program.arguments)

    compile_for(*present)
    bucket = present[1]
    seconds_a_compile = sum(c.seconds for c in table.compiles if c.program in _OF_A_STEP and c.bucket == bucket)
    student = table.run("decode_layout", 0, self.state.student)
    batch = self._batch(self._choose(), first, run.horizon(first, self.progress.horizon_state))
    for _ in range(2):  # the first run of a program pays for more than itself
      started = time.perf_counter()
      jax.block_until_ready(table.run("rollout", bucket, student, *batch))
      seconds_a_step = time.perf_counter() - started
    soon = too_late([step - first for _, step in coming], seconds_a_step, seconds_a_compile)
    if soon:
      named = ", ".join(dict.fromkeys(str(bucket) for (_, bucket), _ in coming[:soon]))
      say(f"the horizon grows faster than the compiler: compiling before the first step for buckets {named}")
    for need, _ in coming[:soon]:
      compile_for(*need)
    self._clock.lap("compile_wait")

  def advance(self) -> dict[str, Any] | None:
    """Begins a step. Returns the row of the step before it, if that was still running; where that was the last update
    that may be skipped in a row (`optimizer.skips`), no further one is begun."""
    run, self._clock = self._run, self._clock or _Stopwatch()
    if self.progress.horizon_state is not None:  # an adaptive horizon reads the metrics of the step before
      self._finish()
    k = self.progress.step
    H = run.horizon(k, self.progress.horizon_state)
    bucket, prefix = run.config.bucket(H), run.horizon.prefix(k, self.progress.horizon_state)

    student = self._call("decode_layout", 0, self.state.student)
    chosen = self._choose()
    rollout = self._call("rollout", bucket, student, *self._batch(chosen, k, H))
    batch = Batch(rollout, self._answers(chosen, k, H, bucket), self._teacher_prompts(chosen))
    self._finish()
    jax.block_until_ready(student)
    self._clock.lap("reshard")
    jax.block_until_ready(rollout)
    self._clock.lap("rollout")
    del student  # the update needs the room
    if self._row and self._row["skipped"] and self.progress.skips >= run.config.optimizer.skips:
      return self._take_row()

    row, program = {"step": k + 1, "horizon": H, "bucket": bucket}, "update"
    if route := self._route(chosen):
      row["teacher"] = route
    arguments = self._frozen.of_rows(route), batch
    if prefix is not None:
      program, arguments = "probe", (*arguments, np.int32(prefix))
      row["probe_prefix"] = prefix
    self.state, metrics = self._call(program, bucket, self.state, *arguments)
    self._running = metrics, row
    if run.config.debug.nans:
      self._repeat = program, bucket, *arguments
    position = self.progress.data_position + run.config.rollout.prompts_per_step
    self.progress = dataclasses.replace(self.progress, step=k + 1, data_position=position)
    return self._take_row()

  def drain(self) -> dict[str, Any] | None:
    """Waits for the step that is running, if one is, and stops the clock. Returns the step's row."""
    self._finish()
    self._clock = None
    return self._take_row()

  def _finish(self) -> None:
    """Waits for the running update's metrics, with which its step ends."""
    if self._running is None:
      return
    (metrics, row), self._running = self._running, None
    numbers = to_floats(metrics)
    self._clock.lap("update")
    largest = int(numbers.pop("largest_gradient"))
    row |= numbers | {name: int(numbers[name]) for name in ("tokens", "skipped")} | self._clock.seconds()
    self._clock = _Stopwatch()
    compiles = self._run.table.compiles
    if new := compiles[self._compiles :]:
      row["compiles_new"] = [dataclasses.asdict(compile) for compile in new]
    self._compiles += len(new)
    row["compiles"] = self._compiles
    if row["skipped"]:  # its numbers say nothing of the horizon
      row["largest_gradient"] = parameter_names(self.state.student)[largest]
      self.progress = dataclasses.replace(self.progress, skips=self.progress.skips + 1)
      self._name_first_nan(row)
    else:
      horizon_state = self._run.horizon.update(self.progress.horizon_state, numbers)
      self.progress = dataclasses.replace(self.progress, horizon_state=horizon_state, skips=0)
    self._row = row

  def _name_first_nan(self, row: dict[str, Any]) -> None:
    """Under debug.nans: repeats the update that was skipped, on the same state, for it left that as it was. Raises
    TrainingError where an operation of it makes a NaN."""
    if not self._repeat or jax.process_count() > 1:  # a process sees its own shards alone: one of many would stop
      return
    program, bucket, *arguments = self._repeat
    if found := self._run.table.first_nan(program, bucket, self.state, *arguments):
      raise TrainingError(f"step {row['step']}: the first operation that makes a NaN is {found}")

  def _take_row(self) -> dict[str, Any] | None:
    row, self._row = self._row, None
    return row

  def _programs(self) -> list[Program]:
    """Of the rest of the run."""
    pair = self._run.pair
    models = Architectures(pair.student, pair.teacher, pair.reference)
    return list_programs(self._run.config, models, self._run.mesh, self.progress.step, self.progress.horizon_state)

  def _choose(self) -> np.ndarray:
    """Which prompts the next step takes."""
    run = self._run
    return run.stream.take(self.progress.data_position, run.config.rollout.prompts_per_step)

  def _route(self, chosen: np.ndarray) -> str:
    """The name of the teacher of a step's prompts; "" where there is one for all rows."""
    routes = self._run.prompts.routes
    return routes[chosen[0]] if routes else ""

  def _batch(self, chosen: np.ndarray, k: int, H: int) -> tuple[Any, ...]:
    """What the rollout of step k reads beside the weights."""
    run, config = self._run, self._run.config
    prompts = pad_left([run.prompts.token_ids[i] for i in chosen], config.rollout.max_prompt)
    prompts_bp, prompt_mask_bp, rows_r = place_rows(run.mesh, (*prompts, np.arange(config.rows, dtype=np.uint32)))
    return prompts_bp, prompt_mask_bp, np.int32(H), np.uint32(config.seed), np.uint32(k), rows_r

  def _answers(self, chosen: np.ndarray, k: int, H: int, bucket: int) -> Answers | None:
    """The data set's, for the rows of step k that take them."""
    run, config = self._run, self._run.config
    if not config.objective.dataset_share:
      return None
    from_data_b = draw_rows(config.objective.dataset_share, config.seed, k, config.rows)
    ids = [run.prompts.answer_ids[i] for i in chosen for _ in range(config.rollout.samples_per_prompt)]
    return place_rows(run.mesh, lay_out_answers(ids, from_data_b, bucket, H))

  def _teacher_prompts(self, chosen: np.ndarray) -> Prompts | None:
    """What the teacher sees in the place of a step's prompts, once for each of their samples."""
    run, config = self._run, self._run.config
    if not config.teacher_prompt:
      return None
    ids = [run.prompts.teacher_ids[i] for i in chosen for _ in range(config.rollout.samples_per_prompt)]
    return place_rows(run.mesh, Prompts(*pad_left(ids, config.teacher_prompt)))

  def _call(self, program: str, bucket: int, *arguments: Any) -> Any:
    """Calls a program. Where it must be compiled or waited for, that time is this step's, not the running one's."""
    table = self._run.table
    executable = table.find(program, bucket, *arguments)
    if executable is None:
      self._finish()
      before = _in_the_foreground(table.compiles)
      executable = table.compile(program, bucket, *arguments)
      self._clock.lap("compile" if _in_the_foreground(table.compiles) > before else "compile_wait")
    return executable(*arguments)


def _in_the_foreground(compiles: list[Compile]) -> int:
  return sum(not compile.ahead for compile in compiles)


class _Stopwatch:
  """Where a step's time goes: laps that follow one another without a gap."""

  def __init__(self):
    self._laps = dict.fromkeys(("compile", "compile_wait", "reshard", "rollout", "update"), 0.0)
    self._cpu_laps = {"cpu_seconds": 0.0, "cpu_seconds_compile": 0.0}
    self._wall, self._cpu = time.perf_counter(), time.process_time()

  def lap(self, name: str) -> None:
    """Gives the time since the last lap to `name`."""
    wall, cpu = time.perf_counter(), time.process_time()
    self._laps[name] += wall - self._wall
    self._cpu_laps["cpu_seconds_compile" if name.startswith("compile") else "cpu_seconds"] += cpu - self._cpu
    self._wall, self._cpu = wall, cpu

  def seconds(self) -> dict[str, float]:
    """`seconds_step` and its parts, wall time; `cpu_seconds` of this process, all threads, but for what the step
    compiled or waited for a compile: that is `cpu_seconds_compile`."""
    parts = {f"seconds_{name}": wall for name, wall in self._laps.items()}
    return {"seconds_step": sum(self._laps.values()), **parts, **self._cpu_laps}
