"""How the ranks of a SLURM step find rank 0's store, also where another job has taken the port that they expect.

Rank 0 opens the store at a port that is free, and says which at the first free one of a row of ports that follows from
the job's and the step's number, so that every rank knows it. Whoever calls there hears one line: of which step it is,
and where the store is. What does not say so, or says nothing, is somebody else's, and the next port is asked.
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
_AGAIN_S = 10.0  # until a port that was somebody else's is asked again
_LINE_BYTES = 256


class NoPortError(Exception):
    """All ports of the row are taken."""


def announce(ports: Sequence[int], meeting: str, store_port: int, num_ranks: int) -> int:
    """Rank 0 answers from here on, at one of `ports`, until its process ends; returns which.

    Raises:
        NoPortError: none of them is free.
    """
    for port in ports:
        with suppress(OSError):
            listener = listen(port, backlog=num_ranks)
            break
    else:
        raise NoPortError
    line = f"{_GREETING} {meeting} {store_port}\n".encode()
    threading.Thread(target=_answer, args=(listener, line), name="mres-lobby", daemon=True).start()
    return port


def find_store(address: str, ports: Sequence[int], meeting: str, patience_s: float) -> int | None:
    """The store's port, asked at `ports` in turn until rank 0 is there; None if it has not come in time."""
    deadline = time.monotonic() + patience_s
    not_before = dict.fromkeys(ports, 0.0)
    while time.monotonic() < deadline:
        for port in ports:
            if time.monotonic() < not_before[port]:
                continue
            with suppress(OSError):  # nobody there, yet
                line = _call(address, port)
                if (store_port := _understood(line, meeting)) is not None:
                    return store_port
                not_before[port] = time.monotonic() + _AGAIN_S
        time.sleep(_LOOK_EVERY_S)
    return None


def _answer(listener: socket.socket, line: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            if listener.fileno() < 0:  # closed, in a forked process
                return
            time.sleep(_LOOK_EVERY_S)  # no more files, or a caller that has hung up
            continue
        with connection, suppress(OSError):
            connection.sendall(line)


def _call(address: str, port: int) -> bytes:
    """What is said there at once; nothing by who does not speak first.

    Raises:
        OSError: nobody listens.
    """
    with socket.create_connection((address, port), timeout=_CALL_S) as connection:
        said = b""
        with suppress(OSError):
            while not said.endswith(b"\n") and len(said) < _LINE_BYTES and (more := connection.recv(_LINE_BYTES)):
                said += more
        return said


def _understood(line: bytes, meeting: str) -> int | None:
    words = line.decode("ascii", errors="replace").split()
    if words[:2] == [_GREETING, meeting] and len(words) == 3 and words[2].isdigit():
        return int(words[2])
    return None


def meeting_of_environment() -> str:
    """Empty where ranks do not follow from a SLURM step: then MASTER_PORT alone counts."""
    return os.environ.get(MEETING, "")
