"""When a run's checkpoints are written: training waits for a copy in host memory, and a thread writes it.

At most one save is in flight. What became of it comes out at a step's boundary, agreed by all ranks: `failed` is what
ranks tell each other there, `wait` is what all of them then call.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mres.checkpoint.config import CheckpointConfig
from mres.checkpoint.host_memory import available_bytes, machines_without_room
from mres.checkpoint.retention import BEST, Best
from mres.checkpoint.store import committed, step_folder
from mres.checkpoint.writing import Job, NotFiniteError, Writer
from mres.dcp.staging import host_bytes
from mres.formats.folder import CheckpointError

if TYPE_CHECKING:
    from mres.parallel.strategy import Strategy

# What a save in flight is given to end before the run does, which has failed; where a rank is lost it fails at once.
_LAST_WAIT_S = 60.0


class _Flight:
    """One save, and what came of it."""

    def __init__(self, writer: Writer, job: Job) -> None:
        self.folder: Path | None = None
        self.error: BaseException | None = None
        self.write_s = 0.0
        self._writer, self._job, self.step = writer, job, job.step
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name="mres-save", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def is_over(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def run(self) -> None:
        started = time.perf_counter()
        try:
            self.folder = self._writer.write(self._job)
        except BaseException as error:  # raised where the save is waited for
            self.error = error
        self.write_s = time.perf_counter() - started


class Saver:
    """Saves a run's checkpoints below `root`; every method but `failed` and `figures` is called by all ranks together.

    Args:
        state_of: what is to stand in state.json after so many steps, with `step`.
        committed: told, in the training thread, of every checkpoint that is whole on the disk: its step and folder.
    """

    def __init__(
        self,
        root: Path,
        strategy: Strategy,
        config: CheckpointConfig,
        state_of: Callable[[int], dict[str, Any]],
        config_yaml: str,
        say: Callable[[str], None],
        committed: Callable[[int, Path], None] = lambda step, folder: None,
    ) -> None:
        self._root, self._strategy, self._config, self._say = root, strategy, config, say
        self._committed = committed
        self._state_of, self._config_yaml = state_of, config_yaml
        self._writer = Writer(root, strategy, config)
        self._flight: _Flight | None = None
        self._failures = 0
        self._has_room: bool | None = None
        self._stall_s = self._wait_s = self._write_s = 0.0

    def resumed(self, folder: Path, step: int) -> None:
        """The run goes on from `folder`, which was verified: it stays until another one is known to be good."""
        if folder.resolve().parent == self._root.resolve():
            self._writer.verified.add(step)

    def save(self, step: int, *, last: bool = False) -> None:
        """Begins a checkpoint, or writes it where saving is not asynchronous; first waits for the one before.

        Args:
            step: steps done.
            last: wait until it is on the disk, and fail where it cannot be, whatever the config says.

        Raises:
            CheckpointError: this one or the one before could not be written (checkpoint.on_failure), or ranks have different
                buffers.
        """
        started = time.perf_counter()
        self.wait()
        self._wait_s += time.perf_counter() - started
        asynchronous = self._config.async_save and not last and self._has_room_for_copies()
        if diverged := self._strategy.diverged_buffers():
            raise CheckpointError(
                f"the model's buffer '{diverged[0]}' is not the same on every rank, and a checkpoint keeps one of each; compute "
                "it from the images of all ranks, as BatchNorm is, or register it with persistent=False"
            )
        shards = self._strategy.stage() if asynchronous else self._strategy.local_shards()
        flight = _Flight(self._writer, Job(step, shards, self._state_of(step), self._config_yaml))
        self._flight = flight
        if asynchronous:
            flight.start()
        else:
            flight.run()
            self.wait(last=last)
        self._stall_s += time.perf_counter() - started

    def _has_room_for_copies(self) -> bool:
        """Whether every machine has memory for its ranks' staged state; looked at once, before it is taken."""
        if self._has_room is None:
            mine = platform.node(), host_bytes(self._strategy.local_shards()), available_bytes()
            lacking = machines_without_room(self._strategy.all_gather_object(mine))
            self._has_room = not lacking
            if lacking:
                self._say(
                    f"warning: {lacking[0]}: checkpoints are written while training waits, as with "
                    "checkpoint.async_save=false; ask for more memory, or use more ranks"
                )
        return self._has_room

    def failed(self) -> bool:
        """Whether this rank knows that the save in flight has failed; the others know it, or will in a moment."""
        flight = self._flight
        if flight is None or not flight.is_over:
            return False
        if flight.error is None:
            self.wait()
        return flight.error is not None

    def wait(self, *, last: bool = False) -> None:
        """Waits until nothing is in flight.

        Raises:
            CheckpointError: what was in flight could not be written (checkpoint.on_failure).
        """
        flight, self._flight = self._flight, None
        if flight is None:
            return
        flight.join()
        self._write_s += flight.write_s
        error = flight.error
        if error is None:
            assert flight.folder is not None, "it was written"
            self._say(f"checkpoint {flight.folder}")
            self._committed(flight.step, flight.folder)
            return
        if not isinstance(error, CheckpointError):
            raise error
        self._failures += 1
        if isinstance(error, NotFiniteError) or self._config.on_failure == "stop" or last:
            raise type(error)(
                f"{error}; checkpoints written before it stand, run the same command again to go on from them"
            )
        self._say(f"warning: {error}; training goes on, the next one is tried when it is due")

    def drain(self) -> None:
        """Before a run that has failed ends: gives a save in flight some time."""
        if self._flight is not None:
            self._flight.join(_LAST_WAIT_S)

    def measured(self, step: int, figures: dict[str, Any] | None) -> None:
        """Remembers the checkpoint of `step` if its `figures` (rank 0 has them) are the best so far; it then stays."""
        name = self._config.keep_best
        if name is None:
            return
        self.wait()
        if figures is not None:
            group, figure = name.split(".", 1)
            self._note_best(step, name, figures[group][figure])

    def _note_best(self, step: int, name: str, value: float | None) -> None:
        folder, there = step_folder(self._root, step), committed(self._root)
        if value is None or folder not in there:
            return
        best = Best.read(self._root)
        counts = best is not None and best.figure == name and best.step != step and self._root / best.folder in there
        if counts and best is not None and value <= best.value:
            return
        try:
            Best(step, name, value, folder.name).write(self._root)
        except OSError as error:
            self._say(f"warning: {folder} is the best so far and may go: {self._root / BEST}: {error.strerror}")
            return
        self._say(f"checkpoint {folder} is the best so far: {name} {value:.4f}")

    def figures(self) -> dict[str, float | int]:
        """Metrics since the last call, of this rank; failures since the start."""
        values = {
            "checkpoint_stall_s": self._stall_s,
            "checkpoint_wait_s": self._wait_s,
            "checkpoint_write_s": self._write_s,
            "checkpoint_failures": self._failures,
        }
        self._stall_s = self._wait_s = self._write_s = 0.0
        return values
