"""A run's numbers as TensorBoard events, written by who asks for it.

tensorboardX's own `SummaryWriter` has a thread for it: where that meets a full disk it dies with a traceback, and
whoever hands it the next numbers waits for ever.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd_jax.telemetry.rows import writing

_FLUSH_SECONDS = 30  # between two flushes: each waits for the disk


class EventFile:
  """A new file of events in `folder`, which is made. TensorBoard forgets what older files there hold from step
  `first` on. InputError where it cannot be written, here and in every method."""

  def __init__(self, folder: Path, first: int):
    # Here and not above: it loads torch wherever torch is installed, which reading a run needs no part of.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog

    self._folder, self._flushed = folder, time.monotonic()
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      # The name of the file ends in whole seconds otherwise: two starts within one would share it, and the second would
      # empty it.
      self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    self._write(step=first, session_log=SessionLog(status=SessionLog.START))
    self.flush()

  def scalars(self, values: Mapping[str, float], step: int) -> None:
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar

    values = [value for tag, number in values.items() for value in scalar(tag, number).value]
    self._write(step=step, summary=Summary(value=values))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    with writing(self._folder):
      self._writer.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    with writing(self._folder):
      self._writer.close()

  def _write(self, **fields: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with writing(self._folder):
      self._writer.write_event(Event(wall_time=time.time(), **fields))
