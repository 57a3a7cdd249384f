"""The server of the peer monitors (`peer_monitor.py`), on rank 0: one thread that waits for connections to close.

Both sides send lines of JSON. A rank says who it is (`token`, `rank`, `host`, `pid`), then nothing until `bye`, or
`lost` (a rank, mostly itself) and `why`. The server says `lost` and `why`, to all and only once, or
`closing`.
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

# A machine that vanishes is noticed after 8 + 3 × 4 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 8, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_DRAIN_S = 2.0
# More than a line has: who sends more without an end of line is not one of ours.
_LINE_BYTES = 16_384

_sockets: set[socket.socket] = set()


@dataclass
class _Peer:
    """Who is at the other end of a connection; `rank` is None until it has shown the token."""

    rank: int | None = None
    where: str = ""
    unread: bytes = b""
    left: bool = False


class PeerServer:
    """Listens on a port of its own from the start on; `token` is what a peer must show."""

    def __init__(self, num_ranks: int, *, loopback: bool) -> None:
        self._server = listen(0, backlog=num_ranks, loopback=loopback)
        self._wake, self._waker = map(close_after_fork, socket.socketpair())
        self.port, self.token = int(self._server.getsockname()[1]), os.urandom(16).hex()
        self._peers: dict[socket.socket, _Peer] = {}
        self._lost: dict[str, Any] | None = None
        self._selector = selectors.DefaultSelector()
        for listening in (self._server, self._wake):
            self._selector.register(listening, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="mres-peer-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ranks that are not through yet are monitored no more; what they were told before reaches them."""
        self._waker.close()
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while self._attend(None):
            pass
        for connection in self._peers:
            send(connection, {"closing": True})
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        # Closing at once could drop what was sent: they close first.
        deadline = time.monotonic() + _DRAIN_S
        while self._peers and (rest := deadline - time.monotonic()) > 0:
            self._attend(rest)

    def _attend(self, timeout_s: float | None) -> bool:
        """Waits for news and takes them in; False once the server is to close."""
        going_on = True
        for key, _ in self._selector.select(timeout_s):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is self._server:
                self._accept()
            elif connection is self._wake:
                self._selector.unregister(connection)
                going_on = False
            else:
                self._read(connection)
        return going_on

    def _accept(self) -> None:
        with suppress(OSError):  # who called has hung up already
            connection = close_after_fork(self._server.accept()[0])
            keep_alive(connection)
            self._peers[connection] = _Peer()
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        try:
            received = connection.recv(_LINE_BYTES)
        except OSError:
            received = b""
        *messages, peer.unread = (peer.unread + received).split(b"\n")
        for message in messages:
            self._hear(connection, peer, message)
        if not received or len(peer.unread) > _LINE_BYTES:
            self._hang_up(connection, peer)

    def _hear(self, connection: socket.socket, peer: _Peer, text: bytes) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        if message.get("token") == self.token:
            peer.rank, peer.where = int(message["rank"]), f"({message['host']}, pid {message['pid']})"
            if self._lost:
                send(connection, self._lost)
        elif peer.rank is not None:
            peer.left = True
            if "lost" in message:
                self._lose(int(message["lost"]), str(message["why"]))

    def _hang_up(self, connection: socket.socket, peer: _Peer) -> None:
        self._selector.unregister(connection)
        del self._peers[connection]
        connection.close()
        if peer.rank is not None and not peer.left:
            self._lose(peer.rank, f"{peer.where} {GONE}")

    def _lose(self, rank: int, why: str) -> None:
        """Tells all; only the first loss counts, the others follow from it."""
        if self._lost is None:
            self._lost = {"lost": rank, "why": why}
            for connection, peer in self._peers.items():
                if peer.rank is not None:
                    send(connection, self._lost)


def listen(port: int, *, backlog: int, loopback: bool = False) -> socket.socket:
    """Listens at all of this machine's addresses, of IPv4 and IPv6, or at 127.0.0.1 alone; not in forked processes.

    Raises:
        OSError: the port is taken.
    """
    if not loopback and socket.has_dualstack_ipv6():
        with suppress(OSError):  # taken, or there is no IPv6
            both = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
            return close_after_fork(both)
    return close_after_fork(socket.create_server(("127.0.0.1" if loopback else "", port), backlog=backlog))


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """A line of JSON; who is gone does not get it."""
    with suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask now and then whether the other machine is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # of Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def close_after_fork(connection: socket.socket) -> socket.socket:
    """Marks a socket as this process's alone: a data worker's copy would keep it open when this process is killed."""
    _sockets.add(connection)
    return connection


def _let_go() -> None:
    for connection in _sockets:
        connection.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_let_go)
