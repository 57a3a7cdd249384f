"""Heartbeats: a small file a rank, `runs/<name>/heartbeat/rank-00000.json`, that says where the rank is and since when.

The training thread only notes where it is; a thread of its own writes the file. So `time` tells that the process runs,
`since` how long it has been in its phase: a rank that waits in a collective has a fresh `time` and an old `since`, one
that is stopped or dead has neither.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

FOLDER = "heartbeat"
# In the order of a step: of two ranks in the same step, the one in the earlier phase keeps the other waiting.
PHASES = ("start", "data", "collective", "forward", "backward", "optimizer", "metrics", "checkpoint", "evaluate")
# How a rank ended: in order, by its own failure, because another one was lost.
ENDED, FAILED, LOST = "end", "failed", "lost"

# Who has not written for so long, or for five times as long as it takes it to write, does not run any more.
_SILENT_S = 10.0
# So many files a second are a light load for the file system of a cluster; more ranks write more rarely.
_FILES_A_SECOND = 64


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank last said of itself; times are seconds since 1970 by its own clock, steps count from 1."""

    rank: int
    world_size: int
    host: str
    pid: int
    started: float
    step: int
    phase: str
    since: float
    time: float
    note: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Beat":
        """Raises: TypeError, ValueError: not what `Heartbeat` writes."""
        if sorted(value) != sorted(field.name for field in fields(cls)):
            raise ValueError(f"it has the keys {', '.join(sorted(value))}")
        return cls(**value)


class Heartbeat:
    """This rank's file, written once a second (with more than 64 ranks more rarely) until `end`."""

    def __init__(self, run_dir: Path, rank: int, world_size: int) -> None:
        self._path = run_dir / FOLDER / file_name(rank)
        now = time.time()
        self._beat = Beat(rank, world_size, socket.gethostname(), os.getpid(), now, 0, "start", now, now)
        self._place = ("start", 0, now)  # one tuple, so that the writing thread sees all of a place or none
        self._every_s = _every_s(world_size)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="mres-heartbeat", daemon=True)

    def start(self) -> None:
        if self._beat.rank == 0:
            self._forget_others()
        self._thread.start()

    def at(self, phase: str, step: int) -> None:
        """Notes where the training thread is from now on."""
        self._place = (phase, step, time.time())

    def end(self, phase: str = ENDED, note: str = "") -> None:
        """The last word: how the rank ended (`ENDED`, `FAILED`, `LOST`), and why."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        self._beat = replace(self._beat, note=note)
        self._place = (phase, self._place[1], time.time())
        self._write()

    def _forget_others(self) -> None:
        """The files of ranks that an earlier start with more of them had."""
        ours = {file_name(rank) for rank in range(self._beat.world_size)}
        for path in self._path.parent.glob("rank-*.json"):
            if path.name not in ours:
                path.unlink(missing_ok=True)

    def _write_on(self) -> None:
        self._write()
        while not self._ended.wait(self._every_s):
            self._write()

    def _write(self) -> None:
        phase, step, since = self._place
        content = json.dumps(asdict(replace(self._beat, phase=phase, step=step, since=since, time=time.time())))
        part = self._path.with_suffix(".part")
        # It must never cost a run: what is wrong with the folder is said when the run's own files are written.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(content, encoding="utf-8")
            part.replace(self._path)


class NoHeartbeat(Heartbeat):
    """Where none is wanted (`train.heartbeat=false`, benches): notes, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), 0, 1)

    def start(self) -> None:
        pass


def _every_s(world_size: int) -> float:
    return max(1.0, world_size / _FILES_A_SECOND)


def file_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def read_beats(run_dir: Path) -> dict[int, Beat]:
    """The heartbeats of a run's folder by rank; files that are none are left out."""
    beats = {}
    for path in sorted((run_dir / FOLDER).glob("rank-*.json")):
        with suppress(OSError, ValueError, TypeError):
            beat = Beat.from_json(json.loads(path.read_text(encoding="utf-8")))
            beats[beat.rank] = beat
    return beats


def is_silent(beat: Beat, now: float) -> bool:
    """Whether a rank that has not ended does not write any more: its process is dead or stopped, or its machine lost."""
    return beat.phase in PHASES and now - beat.time > max(_SILENT_S, 5 * _every_s(beat.world_size))


def lagging(beats: Mapping[int, Beat]) -> list[Beat]:
    """The ranks that the others wait for: in the earliest step and phase of all; none where all are at the same place.

    Ranks that have ended are waited for by nobody.
    """
    running = [beat for beat in beats.values() if beat.phase in PHASES]
    places = {(beat.step, PHASES.index(beat.phase)) for beat in running}
    if len(places) < 2:
        return []
    return [beat for beat in running if (beat.step, PHASES.index(beat.phase)) == min(places)]
