"""What a run needs to go on as if it had never stopped, in Orbax checkpoints under WORKDIR/checkpoints.

state     student (float32), optimizer, step; the teacher (float32) where it follows the student
progress  step, seed (all random keys are folded from seed, step and row), data position, horizon state,
          identities of teacher and reference: hashes, never weights
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from opd_jax.errors import InputError
from opd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a run stands, apart from its arrays.

  Attributes:
    step: finished updates.
    seed: of every random key.
    data_position: prompts consumed.
    horizon_state: of an adaptive horizon; None for the others.
    teacher: `identity` of the folder that the teacher's weights come from.
    reference: of the reference's; "" where there is none.
  """

  step: int
  seed: int
  data_position: int
  horizon_state: Any
  teacher: str
  reference: str = ""


class Checkpointer:
  """Saves in the background, keeps the newest `keep`, restores the newest."""

  def __init__(self, workdir: Path, keep: int):
    self._folder = Path(workdir).absolute() / "checkpoints"
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest(self) -> int | None:
    """The newest finished checkpoint's step; a half-written one does not count."""
    return self._manager.latest_step()

  def save(self, state: TrainState, progress: Progress) -> None:
    if self.latest() == progress.step:
      return
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave(_arrays(state)), progress=ocp.args.JsonSave(dataclasses.asdict(progress))
    )
    self._manager.save(progress.step, args=arguments)

  def progress(self) -> Progress:
    """Of the newest checkpoint, without its arrays."""
    return Progress(**self._read(progress=ocp.args.JsonRestore())["progress"])

  def restore(self, template: TrainState) -> TrainState:
    """The newest checkpoint's state, in the shapes, dtypes and shardings of `template` (see `abstract_state`)."""
    restored = self._read(state=ocp.args.StandardRestore(_arrays(template)))["state"]
    student = dataclasses.replace(template.student, params=restored["student"])
    teacher = dataclasses.replace(student, params=restored["teacher"]) if template.teacher else None
    return TrainState(student, restored["opt_state"], restored["step"], teacher)

  def _read(self, **parts) -> Any:
    """Parts of the newest checkpoint. Raises InputError where they are damaged or do not fit."""
    newest, *older = sorted(self._manager.all_steps(), reverse=True)
    try:
      return self._manager.restore(newest, args=ocp.args.Composite(**parts))
    except Exception as error:  # Orbax and what it stands on have no common one for a file that is cut short
      way = f"move it away to go on from step {older[0]}" if older else "choose another --workdir"
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
      raise InputError(
        f"checkpoint {self._folder / str(newest)} is damaged or of another student ({reason}); {way}"
      ) from error

  def close(self) -> None:
    """Waits for saves that are under way."""
    self._manager.wait_until_finished()
    self._manager.close()


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


def _arrays(state: TrainState) -> dict[str, Any]:
  """The state as plain containers: no class of ours in the format on disk."""
  arrays = {"student": state.student.params, "opt_state": state.opt_state, "step": state.step}
  return arrays | ({"teacher": state.teacher.params} if state.teacher else {})
