"""How the ranks of a SLURM step find rank 0's store, also where another job has taken the port that they expect.

Rank 0 opens the store at a port that is free, and says which at the first free one of a row of ports that follows from
the job's and the step's number, so that every rank knows it. Whoever calls there hears one line: of which step it is,
and where the store is. What does not say so, or says nothing, is somebody else's, and the next port is asked.

The lobby opens as soon as rank 0 knows who it is, and closes when its process ends: so those that call know whether it is
on its way to the store, which may take minutes where many import torch from one file system, or has gone.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from mres.supervise.peer_server import listen

MEETING = "MRES_MEETING"  # job, step and restart, in the environment of a task whose rank follows from them
_GREETING = "mres-store"
_LOOK_EVERY_S = 0.2
_CALL_S = 3.0  # who answers at all does so at once
_COMING_S = 900.0  # rank 0, which is there, may take to its store
_AGAIN_S = 10.0  # until a port that was somebody else's is asked again
_MISSED_CALLS = 3
_LINE_BYTES = 256


class NoPortError(Exception):
    """All ports of the row are taken."""


class RankZeroEndedError(Exception):
    """It was there, and ended without opening a store."""


class Lobby:
    """Rank 0 answers, at the first of `ports` that is free, until its process ends.

    Raises:
        NoPortError: none of them is free.
    """

    def __init__(self, ports: Sequence[int], meeting: str, num_ranks: int) -> None:
        self.store_port = 0  # until there is a store
        self._meeting = meeting
        for port in ports:
            with suppress(OSError):
                self._listener, self.port = listen(port, backlog=num_ranks), port
                break
        else:
            raise NoPortError
        threading.Thread(target=self._answer, name="mres-lobby", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:  # closed, in a forked process
                    return
                time.sleep(_LOOK_EVERY_S)  # no more files, or a caller that has hung up
                continue
            with connection, suppress(OSError):
                connection.sendall(f"{_GREETING} {self._meeting} {self.store_port}\n".encode())


def find_store(address: str, ports: Sequence[int], meeting: str, patience_s: float) -> int | None:
    """The store's port, asked at `ports` in turn; None if rank 0 has not come in time. Once it is there, it has more time.

    Raises:
        RankZeroEndedError: it was there, and is gone.
    """
    started = time.monotonic()
    deadline, not_before = started + patience_s, dict.fromkeys(ports, 0.0)
    its_port, missed = None, 0
    while time.monotonic() < deadline:
        for port in ports:
            if its_port not in (None, port) or time.monotonic() < not_before[port]:
                continue
            line = _call(address, port)
            if (store_port := _understood(line, meeting)) is not None:
                its_port, missed, deadline = port, 0, max(deadline, started + _COMING_S)
                if store_port:
                    return store_port
            elif its_port == port:
                missed += 1
                if missed == _MISSED_CALLS:
                    raise RankZeroEndedError
            elif line is not None:
                not_before[port] = time.monotonic() + _AGAIN_S
        time.sleep(_LOOK_EVERY_S)
    return None


def _call(address: str, port: int) -> bytes | None:
    """What is said there at once; nothing by who does not speak first, None where nobody listens."""
    try:
        connection = socket.create_connection((address, port), timeout=_CALL_S)
    except OSError:
        return None
    said = b""
    with connection, suppress(OSError):
        while not said.endswith(b"\n") and len(said) < _LINE_BYTES and (more := connection.recv(_LINE_BYTES)):
            said += more
    return said


def _understood(line: bytes | None, meeting: str) -> int | None:
    words = (line or b"").decode("ascii", errors="replace").split()
    if words[:2] == [_GREETING, meeting] and len(words) == 3 and words[2].isdigit():
        return int(words[2])
    return None


def meeting_of_environment() -> str:
    """Empty where ranks do not follow from a SLURM step: then MASTER_PORT alone counts."""
    return os.environ.get(MEETING, "")
