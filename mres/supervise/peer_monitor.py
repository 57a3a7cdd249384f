"""The peer monitor: every rank learns at once that another one has died or failed, and which, and ends.

Every rank holds a TCP connection to a server on rank 0 (`peer_server.py`) on which nobody says anything. A process that
dies closes its connections whatever it was doing: the kernel does it, also after kill -9. A machine that dies stops
answering the kernel's keep-alive probes. Both are certain and cost nothing, and neither needs threads that get to run:
a rank that only hangs is not taken for dead (`tools/doctor.py` names it, and its collective's time-out ends the run).

What the others do: their training thread mostly comes out of its collective with an error; what it says then is which
rank was lost. Where it has not ended after some seconds (a kernel of NCCL waits for ever), the monitor ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mres.errors import UserError
from mres.supervise.peer_server import GONE, PeerServer, close_after_fork, keep_alive, send
from mres.supervise.world import World

# EX_OSERR: another rank died or failed.
LOST_RANK_EXIT = 71

# What the training thread is given to end by itself once the monitor knows that a rank is lost.
_GRACE_S = 5.0
# What a collective's error waits for the monitor to say whose fault it is.
_VERDICT_S = 10.0
_CONNECT_S = 30.0
# In the errors of gloo and NCCL, which have no class of their own.
_COMMUNICATION = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting", "socket")


@dataclass(frozen=True, slots=True)
class LostRank:
    """Which rank was lost, and what is known of why."""

    rank: int
    why: str

    def __str__(self) -> str:
        return f"rank {self.rank} {self.why}; all others end with it, and the same command goes on from the newest checkpoint"


class PeerMonitor:
    """This rank's connection to the peer server, and what comes of it; on a single rank it does nothing."""

    def __init__(self, world: World, ended: Callable[[str], None] = lambda why: None) -> None:
        """`ended` is told why before the monitor ends the process."""
        self._world, self._ended = world, ended
        self._server: PeerServer | None = None
        self._connection: socket.socket | None = None
        self._lost: LostRank | None = None
        self._known, self._left = threading.Event(), threading.Event()
        self._explained = False

    def start(self) -> None:
        """Opens the server and connects to it; all ranks together.

        Where a rank cannot connect, it warns: it learns of a loss from its collectives only.
        """
        if self._world.size == 1:
            return
        host, port, token = self._address()
        try:
            self._connection = close_after_fork(socket.create_connection((host, port), timeout=_CONNECT_S))
        except OSError as error:
            print(
                f"warning: rank {self._world.rank} cannot reach rank 0 at {host}:{port} ({error}); it learns of the "
                "death of another rank from its collectives' time-outs only (parallel.timeout_s)",
                file=sys.stderr,
                flush=True,
            )
            return
        self._connection.settimeout(None)
        keep_alive(self._connection)
        send(
            self._connection,
            {"token": token, "rank": self._world.rank, "host": socket.gethostname(), "pid": os.getpid()},
        )
        threading.Thread(target=self._listen, args=(self._connection,), name="mres-peer-monitor", daemon=True).start()

    def verdict(self, error: BaseException) -> LostRank | None:
        """The rank whose loss threw the training thread out of its work with `error`; None: not another's loss.

        An error of communication waits some seconds for the verdict.
        """
        if self._connection is None or isinstance(error, UserError):
            return None
        if not self._known.wait(_VERDICT_S if is_of_communication(error) else 0):
            return None
        self._explained = True
        return self._lost

    def blame(self, lost: LostRank) -> None:
        """Tells all that they end because of `lost`: this rank, which fails by itself, or one that hangs."""
        self._explained = True
        if self._connection is not None:
            send(self._connection, {"lost": lost.rank, "why": lost.why})

    def leave(self) -> None:
        """From here on the end of this rank is in order, or has been explained."""
        self._left.set()
        if self._connection is not None:
            send(self._connection, {"bye": True})
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        if self._server is not None:
            self._server.close()

    def _address(self) -> tuple[str, int, str]:
        """Rank 0 opens the server; all learn where it is and what to say there."""
        address: list[Any] = [None]
        if self._world.is_main:
            host = os.environ["MASTER_ADDR"]
            self._server = PeerServer(self._world.size, loopback=host in ("127.0.0.1", "localhost"))
            address = [(host, self._server.port, self._server.token)]
        dist.broadcast_object_list(address, src=0, device=torch.device("cpu"))
        host, port, token = address[0]
        return host, port, token

    def _listen(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection.makefile("rb") as lines:
            for text in lines:
                message = json.loads(text)
                if "closing" in message:
                    return
                self._end(LostRank(int(message["lost"]), str(message["why"])))
        if not self._left.is_set():  # the server is gone without a word, and rank 0 with it
            self._end(LostRank(0, f"({os.environ['MASTER_ADDR']}) {GONE}"))

    def _end(self, lost: LostRank) -> None:
        if lost.rank == self._world.rank:
            return
        self._lost = lost
        self._known.set()
        if self._left.wait(_GRACE_S):
            return
        if not self._explained:  # else the training thread said it, and hangs in leaving
            print(f"error: {lost}", file=sys.stderr, flush=True)
            self._ended(str(lost))
        os._exit(LOST_RANK_EXIT)


def is_of_communication(error: BaseException) -> bool:
    """Whether it came out of a collective, and so may be another rank's fault."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in text for w in _COMMUNICATION)
    )


def in_one_line(error: BaseException) -> str:
    """What an error says, short enough to be handed round."""
    text = (str(error).strip().splitlines() or [""])[0][:1000]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
