"""What a run needs to go on as if it had never stopped, in Orbax checkpoints under WORKDIR/checkpoints.

state     what is trained of the student (float32), optimizer, step; the teacher (float32) where it follows the student
progress  step, seed (all random keys are folded from seed, step and row), data position, horizon state, updates skipped
          in a row, identities of the models that are not trained: hashes, never weights
manifest  size and checksum of every file of these: what is damaged is passed over, and named
"""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from opd_jax.errors import InputError
from opd_jax.telemetry.rows import writing
from opd_jax.training.manifest import damage, pass_over_damaged, write_manifest
from opd_jax.training.state import TrainState

_OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a run stands, apart from its arrays.

  Attributes:
    step: finished steps; one whose update was skipped counts.
    seed: of every random key.
    data_position: prompts consumed, which is all the state that `data.PromptStream` has.
    horizon_state: of an adaptive horizon; None for the others.
    teacher: `identity` of the folder that the teacher's weights come from.
    reference: of the reference's; "" where there is none.
    skips: updates skipped in a row, up to this step.
    student: identity of the folder that a LoRA's frozen weights come from; "" where all weights are trained.
  """

  step: int
  seed: int
  data_position: int
  horizon_state: Any
  teacher: str
  reference: str = ""
  skips: int = 0
  student: str = ""


class Checkpointer:
  """Saves in the background, keeps the newest `keep`, restores the newest that is not damaged.

  `best`: the name of a mark; beside the newest the checkpoint with the largest such mark is kept.
  `repairs`: a damaged checkpoint is renamed (99 -> 99.damaged), so that its step can be saved again; for the one run
  that writes to the folder. Nothing is deleted.

  Attributes:
    damaged: a line for each checkpoint that was passed over, on the first process; the others have none.

  Raises InputError where there are checkpoints and every one of them is damaged; nothing is renamed then.
  """

  def __init__(self, workdir: Path, keep: int, best: str = "", *, repairs: bool = False):
    self._folder = Path(workdir).absolute() / "checkpoints"
    self._best = best
    self._latest, self.damaged = pass_over_damaged(self._folder, repairs)
    self._saving = 0  # the step that was given to Orbax last

    def mark(marks: Mapping[str, float]) -> float:
      return marks.get(best, -math.inf)

    policy = checkpoint_managers.LatestN(keep)
    if best:
      largest = checkpoint_managers.BestN(get_metric_fn=mark, n=1, keep_checkpoints_without_metrics=False)
      policy = checkpoint_managers.AnyPreservationPolicy([policy, largest])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      best_fn=mark if best else None,
      create=True,
      # Where a folder that is made in the background cannot be made, Orbax waits five minutes for it.
      async_options=ocp.options.AsyncOptions(
        post_finalization_callback=self._complete, create_directories_asynchronously=False
      ),
    )
    _tell_once()
    handlers = {"state": _state_handler(), "progress": ocp.JsonCheckpointHandler()}
    with writing(self._folder):
      self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
    best_step = self._manager.best_step() if best else None
    self._best_mark = -math.inf if best_step is None else mark(self._manager.metrics(best_step))

  def latest(self) -> int | None:
    """The step of the newest checkpoint; one that is half-written or damaged does not count."""
    return self._latest

  def find(self, which: str) -> int:
    """The step of a checkpoint called "newest", "best" or by its step. InputError where there is none."""
    if self._latest is None:
      raise InputError(f"{self._folder.parent} has no finished checkpoint: train first")
    steps = [step for step in sorted(self._manager.all_steps()) if step <= self._latest]
    if which == "newest":
      return self._latest
    if which == "best":
      if self._best_mark == -math.inf:
        reason = f"none of them has the mark {self._best!r}" if self._best else "config.eval.keep_best is empty"
        raise InputError(f"{self._folder} has no best checkpoint: {reason}; name one of the steps {steps}")
      return self._checked(self._manager.best_step())
    if which not in map(str, steps):
      raise InputError(f"{self._folder} has no checkpoint {which!r}: take newest, best, or one of the steps {steps}")
    return self._checked(int(which))

  def would_be_best(self, marks: Mapping[str, float]) -> bool:
    """Whether a checkpoint with these marks would be better than all that were saved."""
    return marks.get(self._best, -math.inf) > self._best_mark

  def save(self, state: TrainState, progress: Progress, marks: Mapping[str, float]) -> None:
    """`marks`: of this student by their names, where it was evaluated.

    Raises InputError where this checkpoint, or the one before it, cannot be written.
    """
    if self._latest == progress.step:
      return
    self._best_mark = max(self._best_mark, marks.get(self._best, -math.inf))
    arguments = ocp.args.Composite(
      state=ocp.args.PyTreeSave(_arrays(state)), progress=ocp.args.JsonSave(dataclasses.asdict(progress))
    )
    with self._writing():
      self._manager.wait_until_finished()
      self._saving = progress.step
      self._manager.save(progress.step, args=arguments, metrics=dict(marks))
    self._latest = progress.step

  def progress(self) -> Progress:
    """Of the newest checkpoint, without its arrays."""
    return Progress(**self._read(progress=ocp.args.JsonRestore())["progress"])

  def restore(self, template: TrainState, step: int | None = None) -> TrainState:
    """A checkpoint's state (None: the newest's), in the shapes, dtypes and shardings of `template` (see
    `abstract_state`); what is not trained of the student is the template's."""
    arrays = _arrays(template)
    placed = ocp.checkpoint_utils.construct_restore_args(arrays)
    restored = self._read(step, state=ocp.args.PyTreeRestore(arrays, restore_args=placed))["state"]
    student = template.student.with_trained(restored["student"])
    teacher = template.teacher and dataclasses.replace(template.teacher, params=restored["teacher"])
    return TrainState(student, restored["opt_state"], restored["step"], teacher)

  def _read(self, step: int | None = None, **parts) -> Any:
    """Parts of a checkpoint (None: the newest). Raises InputError where they are damaged or do not fit."""
    step = self._latest if step is None else step
    older = sorted((other for other in self._manager.all_steps() if other < step), reverse=True)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**parts))
    except Exception as error:  # Orbax and what it stands on have no common one for a file that is cut short
      way = f"move it away to go on from step {older[0]}" if older else "choose another --workdir"
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
      raise InputError(
        f"checkpoint {self._folder / str(step)} is damaged or of another student ({reason}); {way}"
      ) from error

  def wait(self) -> None:
    """Until what is being saved is on disk. InputError where it cannot be written."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets the folder go."""
    self.wait()
    self._manager.close()

  def _checked(self, step: int) -> int:
    """`step`, unless its checkpoint is damaged: InputError. The newest has been looked at already."""
    if step != self._latest and (why := damage(self._folder / str(step))):
      raise InputError(f"checkpoint {self._folder / str(step)} is damaged: {why}; the newest is {self._latest}")
    return step

  def _complete(self) -> None:
    """Orbax calls it on the first process, in its thread, when all files are there and the folder has no name yet."""
    write_manifest(self._folder / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}")

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """A full disk or a read-only folder is the user's to mend, whichever library says it in whatever words."""
    try:
      yield
    except Exception as error:
      reasons = [os.strerror(code) for code in _OF_THE_SYSTEM if os.strerror(code) in str(error)]
      if not reasons:
        raise
      raise InputError(
        f"cannot write checkpoint {self._folder / str(self._saving)}: {reasons[0]}; free some space or make the folder "
        "writable, and run the same command again: it goes on from the checkpoint before"
      ) from error


def identity(folder: str | os.PathLike) -> str:
  """A hash that tells one model folder from another without reading all of it.

  config.json whole; of each safetensors file its size and 64 blocks of 64 KiB, evenly spread.
  """
  digest = hashlib.sha256()
  for path in [*sorted(Path(folder).glob("*.safetensors")), Path(folder) / "config.json"]:
    size, block, blocks = path.stat().st_size, 1 << 16, 64
    digest.update(f"{path.name} {size} ".encode())
    with open(path, "rb") as file:
      for i in range(blocks if size > block * blocks else 1):
        file.seek(i * (size - block) // (blocks - 1) if size > block * blocks else 0)
        digest.update(file.read(block if size > block * blocks else -1))
  return digest.hexdigest()


def _state_handler() -> ocp.PyTreeCheckpointHandler:
  """Writes an array that several devices hold from the first of them. Orbax would have each write its part, and have
  XLA compile the cuts: in the middle of a run, one for each shape."""
  arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _arrays(state: TrainState) -> dict[str, Any]:
  """The state as plain containers: no class of ours in the format on disk."""
  arrays = {"student": state.student.trained, "opt_state": state.opt_state, "step": state.step}
  return arrays | ({"teacher": state.teacher.params} if state.teacher else {})


def _tell_once() -> None:
  """Orbax logs with its traceback what it raises, and where one write fails, those beside it find that nobody waits for
  them any more: of all that, the error that is raised is told."""
  logging.getLogger("absl").addFilter(_is_not_raised)
  if sys.unraisablehook is not _on_unraisable:
    global _unraisable
    _unraisable, sys.unraisablehook = sys.unraisablehook, _on_unraisable


def _is_not_raised(record: logging.LogRecord) -> bool:
  return record.levelno < logging.ERROR or "orbax" not in record.pathname


_unraisable = sys.unraisablehook


def _on_unraisable(unraisable: Any) -> None:
  if str(unraisable.exc_value) != "Event loop is closed":
    _unraisable(unraisable)
