"""A run on Weights & Biases as well, where `log.wandb` asks for it: the numbers of its rows, and its config.

The package is imported here alone, when it is needed: `pip install "opd_jax[wandb]"`. W&B's own count of steps
is not used, for it refuses what a resumed run writes again; `step` is the x axis of every chart instead:

    WORKDIR/wandb_id        one run there for one workdir, however often it is resumed
    WORKDIR/wandb/          what W&B keeps here; under wandb_mode=offline all of it, for `wandb sync`
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from opd_jax.errors import InputError
from opd_jax.telemetry.rows import replace_file

_ID_FILE = "wandb_id"
_FINISH_SECONDS = 600  # that the end of a run waits for an upload; what is missing then, `wandb sync` sends

_log = logging.getLogger(__name__)


def check_wandb(mode: str) -> None:
  """Raises InputError where the package is missing or too old, or W&B knows nobody by the key that is there.

  `mode`: `log.wandb_mode`. Only "online" needs a login, which is verified with the server.
  """
  wandb = _package()
  if _resolved(mode) != "online":
    return
  with _one_line("cannot log in to W&B"):
    wandb.setup(wandb.Settings(mode="online", silent=True))  # a WANDB_MODE that says otherwise would forbid the login
    logged_in = wandb.login(prompt=False, verify=True)
  if not logged_in:
    raise InputError(
      "config.log.wandb is true, and nobody is logged in to W&B: run `wandb login`, set WANDB_API_KEY, or take "
      "config.log.wandb_mode=offline"
    )


class WandbRun:
  """One run there, open until `close`.

  Attributes:
    place: where it can be looked at: its address, or without a server the folder that `wandb sync` takes.
  """

  def __init__(
    self, workdir: Path, *, project: str, name: str, mode: str, config: Mapping[str, Any], resumed: bool
  ) -> None:
    """
    Args:
      workdir: of the run; its name stands for an empty `name`.
      project, name, mode: `log.wandb_project` and its neighbours.
      config: nested settings, shown beside the charts.
      resumed: whether the workdir's run goes on; a fresh one gets a new id.

    Raises InputError where W&B does not let it begin.
    """
    wandb, mode = _package(), _resolved(mode)
    with _one_line("W&B does not begin the run"):
      self._run = wandb.init(
        project=project,
        name=name or workdir.resolve().name,
        id=_run_id(workdir, resumed),
        resume="allow" if resumed and mode == "online" else None,
        dir=str(workdir),
        mode=mode,
        config=dict(config),
        reinit="create_new",  # a notebook's own run is none of ours
        settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SECONDS),
      )
      self._run.define_metric("step")
      self._run.define_metric("*", step_metric="step")
      self.place = self._run.url if mode == "online" else str(Path(self._run.dir).parent)

  def scalars(self, values: Mapping[str, float], step: int) -> None:
    """Numbers of one row. What W&B refuses ends its part of the run, and is told, but not the training."""
    if self._run is None:
      return
    try:
      self._run.log({**values, "step": step})
    except Exception as error:  # somebody else's service
      _log.warning("W&B takes no more numbers from step %d on: %s", step, _without_key(error))
      self._run = None

  def close(self, failed: bool) -> None:
    """Waits for what is on its way. `failed`: the run ends by an exception."""
    if self._run is None:
      return
    try:
      self._run.finish(exit_code=int(failed))
    except Exception as error:  # likewise
      _log.warning("W&B may lack the last numbers of the run: %s", _without_key(error))


def _package() -> ModuleType:
  try:
    import wandb
  except ImportError as error:
    raise InputError(
      f'config.log.wandb is true, and the package cannot be imported ({error}): pip install "opd_jax[wandb]"'
    ) from error
  return wandb


def _resolved(mode: str) -> str:
  return mode or os.environ.get("WANDB_MODE", "online")


def _run_id(workdir: Path, resumed: bool) -> str:
  path = workdir / _ID_FILE
  if not (resumed and path.is_file()):
    replace_file(path, secrets.token_hex(8) + "\n")
  return path.read_text().strip()


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
  """Whatever the package raises is the user's to mend: a key, a name, a network, a version."""
  try:
    yield
  except TypeError as error:  # an argument that came later
    raise InputError(f'{what}: {_without_key(error)}; a newer one may: pip install -U "opd_jax[wandb]"') from error
  except Exception as error:
    raise InputError(f"{what}: {_without_key(error)}; config.log.wandb_mode=offline needs no server") from error


def _without_key(error: Exception) -> str:
  """Its text, and never a key."""
  text, key = str(error) or type(error).__name__, os.environ.get("WANDB_API_KEY")
  return text.replace(key, "***") if key else text
