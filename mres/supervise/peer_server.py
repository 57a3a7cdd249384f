"""The desk of the watch (`watch.py`), on rank 0: one thread that waits for connections to close.

Both sides send lines of JSON. A rank says who it is (`token`, `rank`, `host`, `pid`), then nothing until `bye`, or
`lost` (a rank, mostly itself) and `why`. The desk says `lost` and `why`, to all and only once, or `closing`.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

GONE = "died: its process is gone without a word (killed, out of memory, or its machine was lost)"

# A machine that vanishes is noticed after 10 + 4 × 5 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
_DRAIN_S = 2.0
# More than a line has: who sends more without an end of line is not one of ours.
_LINE_BYTES = 16_384

_sockets: set[socket.socket] = set()


@dataclass
class _Caller:
    """A connection; `rank` is None until it has shown the token."""

    rank: int | None = None
    where: str = ""
    unread: bytes = b""
    left: bool = False


class PeerServer:
    """Listens on a port of its own from the start on; `token` is what a caller must know."""

    def __init__(self, num_ranks: int, *, loopback: bool) -> None:
        self._server = ours(socket.create_server(("127.0.0.1" if loopback else "", 0), backlog=num_ranks))
        self._wake, self._waker = map(ours, socket.socketpair())
        self.port, self.token = int(self._server.getsockname()[1]), os.urandom(16).hex()
        self._callers: dict[socket.socket, _Caller] = {}
        self._lost: dict[str, Any] | None = None
        self._selector = selectors.DefaultSelector()
        for listening in (self._server, self._wake):
            self._selector.register(listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="mres-desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ranks that are not through yet watch no more; what they were told before reaches them."""
        self._waker.close()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while self._attend(None):
            pass
        for line in self._callers:
            send(line, {"closing": True})
            with suppress(OSError):
                line.shutdown(socket.SHUT_WR)
        # Closing at once could drop what was sent: they close first.
        deadline = time.monotonic() + _DRAIN_S
        while self._callers and (rest := deadline - time.monotonic()) > 0:
            self._attend(rest)

    def _attend(self, timeout_s: float | None) -> bool:
        """Waits for news and takes them in; False once the desk is to close."""
        going_on = True
        for key, _ in self._selector.select(timeout_s):
            line = key.fileobj
            assert isinstance(line, socket.socket)
            if line is self._server:
                self._accept()
            elif line is self._wake:
                self._selector.unregister(line)
                going_on = False
            else:
                self._read(line)
        return going_on

    def _accept(self) -> None:
        with suppress(OSError):  # who called has hung up already
            line = ours(self._server.accept()[0])
            keep_alive(line)
            self._callers[line] = _Caller()
            self._selector.register(line, selectors.EVENT_READ)

    def _read(self, line: socket.socket) -> None:
        caller = self._callers[line]
        try:
            received = line.recv(_LINE_BYTES)
        except OSError:
            received = b""
        *messages, caller.unread = (caller.unread + received).split(b"\n")
        for message in messages:
            self._hear(line, caller, message)
        if not received or len(caller.unread) > _LINE_BYTES:
            self._hang_up(line, caller)

    def _hear(self, line: socket.socket, caller: _Caller, text: bytes) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if message.get("token") == self.token:
            caller.rank, caller.where = int(message["rank"]), f"({message['host']}, pid {message['pid']})"
            if self._lost:
                send(line, self._lost)
        elif caller.rank is not None:
            caller.left = True
            if "lost" in message:
                self._lose(int(message["lost"]), str(message["why"]))

    def _hang_up(self, line: socket.socket, caller: _Caller) -> None:
        self._selector.unregister(line)
        del self._callers[line]
        line.close()
        if caller.rank is not None and not caller.left:
            self._lose(caller.rank, f"{caller.where} {GONE}")

    def _lose(self, rank: int, why: str) -> None:
        """Tells all; only the first loss counts, the others follow from it."""
        if self._lost is None:
            self._lost = {"lost": rank, "why": why}
            for line, caller in self._callers.items():
                if caller.rank is not None:
                    send(line, self._lost)


def send(line: socket.socket, message: Mapping[str, Any]) -> None:
    """A line of JSON; who is gone does not get it."""
    with suppress(OSError):
        line.sendall(json.dumps(message).encode() + b"\n")


def keep_alive(line: socket.socket) -> None:
    """Has the kernel ask now and then whether the other machine is still there."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # of Linux
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def ours(line: socket.socket) -> socket.socket:
    """Marks a socket as this process's alone: a data worker's copy would keep it open when this process is killed."""
    _sockets.add(line)
    return line


def _let_go() -> None:
    for line in _sockets:
        line.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_let_go)
