"""Heartbeats: a small file a rank, `runs/<name>/heartbeat/rank-00000.json`, that says where the rank is and since when.

The training thread only notes where it is; a thread of its own writes the file. So `time` tells that the process runs,
`since` how long it has been in its phase: a rank that waits in a collective has a fresh `time` and an old `since`, one
that is stopped or dead has neither.

Who waits for whom does not follow from the phases: within forward and backward the others wait in the collectives of
that same phase. So every rank counts its `moves` from phase to phase, of which all ranks make the same ones, and the
collectives it has begun: the rank with the fewest of both is the one that has not come.

The clocks of two machines may differ by more than a rank may be silent. So what compares ranks uses the time at which
the file system says that a file was written, and a rank's own clock only for what lies between two of its own times.
"""

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mres.io.files import open_regular
from mres.io.json_files import JsonError, parse_object

FOLDER = "heartbeat"
# Where a rank is that has not ended.
PHASES = ("start", "data", "collective", "forward", "backward", "optimizer", "metrics", "checkpoint", "evaluate")
# How a rank ended: in order, by its own failure, because another one was lost.
ENDED, FAILED, LOST = "end", "failed", "lost"

# Who has not written for so long, or for five times as long as it takes it to write, does not run any more.
_SILENT_S = 10.0
# So many files a second are a light load for the file system of a cluster; more ranks write more rarely.
_FILES_A_SECOND = 64
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank last said of itself; times are seconds since 1970 by its own clock, steps count from 1.

    `moves` counts the phases it has entered, `active` is when it last entered one or began a collective. `written` is no
    part of the file, but when that was written by the clock of the file system, which is one for all ranks; `now` below
    is by the same clock (`file_system_time`).
    """

    rank: int
    world_size: int
    host: str
    pid: int
    started: float
    step: int
    phase: str
    since: float
    moves: int
    collectives: int
    active: float
    time: float
    note: str = ""
    written: float = 0.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any], written: float) -> "Beat":
        """Raises: TypeError, ValueError: not what `to_json` returned."""
        if sorted(value) != sorted(field.name for field in fields(cls) if field.name != "written"):
            raise ValueError(f"it has the keys {', '.join(sorted(value))}")
        return cls(**value, written=written)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "written"}

    @property
    def runs(self) -> bool:
        return self.phase in PHASES

    @property
    def progress(self) -> tuple[int, int]:
        """How far the rank has come; all ranks make the same progress in the same order."""
        return self.moves, self.collectives

    @property
    def came(self) -> float:
        """When it started, by the file system's clock."""
        return self.written - (self.time - self.started)

    def silent_s(self, now: float) -> float:
        """How long ago it last wrote."""
        return now - self.written

    def phase_s(self, now: float) -> float:
        """How long it has been in its phase."""
        return self.silent_s(now) + self.time - self.since

    def status(self, now: float) -> str:
        """Where it is and for how long, for people."""
        return f"step {self.step}, {self.phase}, for {self.phase_s(now):.0f} s"

    def idle_s(self, now: float) -> float:
        """For how long it has neither gone into another phase nor begun a collective."""
        return self.silent_s(now) + self.time - self.active


class Heartbeat:
    """This rank's file, written from `start` to `end` once a second, with more than 64 ranks more rarely."""

    def __init__(self, run_dir: Path, rank: int, world_size: int, collectives: Callable[[], int] = lambda: 0) -> None:
        """`collectives` tells the writing thread how many this process has begun."""
        self._path = run_dir / FOLDER / file_name(rank)
        now = time.time()
        self._beat = Beat(rank, world_size, socket.gethostname(), os.getpid(), now, 0, "start", now, 0, 0, now, now)
        self._at = ("start", 0, now, 0)  # one tuple, so that the writing thread sees all of a place or none
        self._collectives = collectives
        self._every_s = _every_s(world_size)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="mres-heartbeat", daemon=True)

    def start(self) -> None:
        if self._beat.rank == 0:
            self._forget_others()
        self._thread.start()

    def at(self, phase: str, step: int) -> None:
        """Notes where the training thread is from now on; all ranks make the same calls in the same order."""
        self._at = (phase, step, time.time(), self._at[3] + 1)

    def end(self, phase: str = ENDED, note: str = "") -> None:
        """The last word: how the rank ended (`ENDED`, `FAILED`, `LOST`), and why."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        self._beat = replace(self._beat, note=note)
        self._at = (phase, self._at[1], time.time(), self._at[3])
        self._write()

    def _forget_others(self) -> None:
        """The files of ranks that an earlier start with more of them had."""
        ours = {file_name(rank) for rank in range(self._beat.world_size)}
        for path in self._path.parent.glob("rank-*"):
            if path.suffix in (".json", ".part") and path.with_suffix(".json").name not in ours:
                with suppress(OSError):
                    path.unlink()

    def _write_on(self) -> None:
        self._write()
        while not self._ended.wait(self._every_s):
            self._write()

    def _look(self) -> Beat:
        phase, step, since, moves = self._at
        collectives, now = self._collectives(), time.time()
        active = self._beat.active if (moves, collectives) == self._beat.progress else now
        return replace(
            self._beat,
            phase=phase,
            step=step,
            since=since,
            moves=moves,
            collectives=collectives,
            active=active,
            time=now,
        )

    def _write(self) -> None:
        self._beat = self._look()
        content = json.dumps(self._beat.to_json())
        part = self._path.with_suffix(".part")
        # It must never cost a run: what is wrong with the folder is said when the run's own files are written.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(content, encoding="utf-8")
            part.replace(self._path)


def _every_s(world_size: int) -> float:
    return max(1.0, world_size / _FILES_A_SECOND)


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def read_beats(run_dir: Path) -> dict[int, Beat]:
    """The heartbeats of a run's folder by rank; files that are none are left out."""
    beats = {}
    for path in sorted((run_dir / FOLDER).glob("rank-*.json")):
        with suppress(OSError, JsonError, ValueError, TypeError), open_regular(path, _MAX_BYTES) as file:
            beat = Beat.from_json(parse_object(file.read(), str(path)), os.fstat(file.fileno()).st_mtime)
            beats[beat.rank] = beat
    return beats


def file_system_time(run_dir: Path) -> float:
    """The time by the clock that dates the files of a run's heartbeats; this machine's where no file can be made there."""
    try:
        with tempfile.TemporaryFile(dir=run_dir / FOLDER, buffering=0) as file:
            file.write(b".")
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def is_silent(beat: Beat, now: float) -> bool:
    """Whether a rank that has not ended does not write any more: its process is dead or stopped, or its machine lost."""
    return beat.runs and beat.silent_s(now) > max(_SILENT_S, 5 * _every_s(beat.world_size))


def lagging(beats: Mapping[int, Beat]) -> list[Beat]:
    """The ranks that the others wait for: those that have come least far; none where all are at the same place.

    Ranks that have ended are waited for by nobody.
    """
    running = [beat for beat in beats.values() if beat.runs]
    reached = {beat.progress for beat in running}
    if len(reached) < 2:
        return []
    return [beat for beat in running if beat.progress == min(reached)]
