"""A step of a job: srun at work, what it says of its tasks, and its end where a node is lost."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from mres.cluster.nodes import Watch
from mres.cluster.restarts import Failure
from mres.supervise.heartbeat import FAILED, LOST

# Left over in a shell that has submitted, they would be taken for the tasks' own.
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_LOOK_EVERY_S = 3.0
# The tasks' last words, once one of them has ended badly, before the nodes are asked.
_LAST_WORDS_S = 3.0
# srun ends its tasks when it is told to; those of a lost node it would wait for.
_SRUN_ENDS_S = 3.0
# In errors that a machine is to blame for.
_NODE_FAULT = re.compile(r"CUDA error|CUDNN|NCCL error|ECC|Xid|hardware|Input/output error|Bus error", re.IGNORECASE)


def say(text: str) -> None:
    """A line of the job's log."""
    _print(f"mres: {text}\n")


def _print(text: str) -> None:
    with suppress(OSError):  # of a full disk: what is decided does not hang on what can be said
        print(text, end="", file=sys.stderr, flush=True)


class Step:
    """srun at work; what it says of its tasks is passed on, and read."""

    def __init__(self, command: Sequence[str], watch: Watch) -> None:
        say(shlex.join(command))
        environ = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environ
        )
        self._watch = watch
        self._ended_at: float | None = None  # the first task that ended badly
        self.ends: list[TaskEnd] = []
        self.lost: tuple[str, ...] = ()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self) -> int:
        """0, or the exit code of the task that ended badly first (128 + N where a signal N ended it): srun's own is the
        largest, and the others are ended for the first one's sake."""
        looked_at = time.monotonic()
        while self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.5)
            if self._process.poll() is None and time.monotonic() - looked_at > _LOOK_EVERY_S:
                self.lost = self._watch.lost(has_failed=self._has_spoken())
                if self.lost:
                    self._end()
                looked_at = time.monotonic()
        self._reader.join(timeout=_LOOK_EVERY_S)  # a task may have its pipe still
        code = self._process.returncode
        if code and not self.lost:
            self.lost = self._watch.lost(has_failed=True)
        return code and (self.ends[0].exit_code if self.ends else abs(code))

    def failure(self) -> Failure:
        """What is known of why it failed."""
        beats = self._watch.beats()
        reached = max((beat.step for beat in beats), default=0)
        if self.lost:
            return Failure(f"lost {_named(self.lost)}", reached, self.lost, self.lost)
        for beat in beats:
            if beat.phase == FAILED:
                node = beat.host.partition(".")[0]
                failed = (node,) if _NODE_FAULT.search(beat.note) else ()
                return Failure(f"rank {beat.rank} on {node} failed: {beat.note}", reached, (), failed)
        for end in self.ends:
            if end.is_killed:
                return Failure(f"rank {end.tasks} on {end.node}: {end.how}", reached)
        told = [beat.note for beat in beats if beat.phase == LOST]
        first = f"task {self.ends[0].tasks} on {self.ends[0].node}: {self.ends[0].how}" if self.ends else "srun failed"
        return Failure(told[0] if told else first, reached)

    def _has_spoken(self) -> bool:
        return self._ended_at is not None and time.monotonic() - self._ended_at > _LAST_WORDS_S

    def _end(self) -> None:
        say(f"lost {_named(self.lost)}: ending the step")
        self._process.terminate()
        try:
            self._process.wait(_SRUN_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line == "srun: got SIGCONT\n":  # comes with every SIGTERM of SLURM's
                continue
            _print(line)
            if found := TaskEnd.read(line):
                self.ends.append(found)
                self._ended_at = self._ended_at or time.monotonic()


def _named(nodes: Sequence[str]) -> str:
    return f"node(s) {', '.join(nodes)}"


class TaskEnd:
    """How tasks of one node ended, as srun says it: "srun: error: n1: tasks 2-3: Exited with exit code 7"."""

    _SAID = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$")

    def __init__(self, node: str, tasks: str, how: str) -> None:
        self.node, self.tasks, self.how = node, tasks, how

    @classmethod
    def read(cls, line: str) -> TaskEnd | None:
        found = cls._SAID.match(line.strip())
        return cls(*found.groups()) if found else None

    @property
    def exit_code(self) -> int:
        """128 + N where a signal N ended it."""
        if found := re.search(r"exit code (\d+)", self.how):
            return int(found[1])
        if self.how == "Out Of Memory":  # SLURM's own words, where it bounds memory: the kernel has killed it
            return 128 + signal.SIGKILL
        return next((128 + number for number in signal.Signals if signal.strsignal(number) == self.how), 1)

    @property
    def is_killed(self) -> bool:
        """By a signal that nobody sends to stop it in order: the kernel (out of memory), its own fault, or kill -9."""
        return self.exit_code - 128 in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL)
