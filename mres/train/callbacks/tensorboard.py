"""The metrics in tensorboard/ of the run's folder; on rank 0.

Written without TensorBoard's own writer, whose thread dies with a traceback where the disk is full.
"""

from __future__ import annotations

import io
import os
import socket
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from mres.run_folder import RunLog
from mres.train.callback import Callback

if TYPE_CHECKING:
    from mres.io.append_log import AppendLog

_number = count()


class TensorBoard(Callback):
    """A file of events for each start; what an earlier one has of later steps is not shown any more."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._events: AppendLog | None = None

    def run_start(self, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_number)}"
        self._events = self._log.log(f"tensorboard/{name}")
        start = SessionLog(status=SessionLog.START)
        self._add(file_version="brain.Event:2")
        self._add(step=first_step + 1, session_log=start)  # from this step on, what earlier files have is void

    def on_log(self, metrics: dict[str, float | int]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if name != "step"]
        self._add(step=int(metrics["step"]), summary=Summary(value=values))

    def _add(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._events is not None, "run_start() comes first"
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self._events.add(record.getvalue())
