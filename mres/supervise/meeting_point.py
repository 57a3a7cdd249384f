"""Rank 0's TCP store, opened or found: at MASTER_ADDR:MASTER_PORT, or through the lobby where the port follows from a SLURM step."""

from __future__ import annotations

import datetime
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mres.errors import UserError
from mres.supervise.lobby import Lobby, NoPortError, RankZeroEndedError, find_store, meeting_of_environment
from mres.supervise.slurm_env import ports_of_meeting

if TYPE_CHECKING:
    import torch.distributed as dist

_GREET_S = 30.0  # rank 0 may have left again while torch was imported; torch asks for the names of addresses, and DNS may be slow
_LOOK_EVERY_S = 0.1

_lobbies: dict[str, Lobby] = {}  # of this process, which is rank 0, by meeting


def receive_ranks(size: int) -> Lobby:
    """Rank 0's lobby, open from the first call on.

    Raises:
        NoPortError: all its ports are taken.
    """
    meeting = meeting_of_environment()
    if meeting not in _lobbies:
        _lobbies[meeting] = Lobby(ports_of_meeting(meeting, _port()), meeting, size)
    return _lobbies[meeting]


def open_store(rank: int, size: int, timeout_s: float) -> dist.Store:
    """Rank 0 opens it, the others find it.

    Raises:
        UserError: no port to listen at, nobody who listens.
    """
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], _port()
    meeting = meeting_of_environment()
    # torchrun's agent keeps the store and outlives its workers.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listens = rank == 0 and not of_agent
    ports = ports_of_meeting(meeting, port) if meeting else [port]
    try:
        if not meeting:
            return connect(port, timeout_s, is_master=listens)
        if listens:
            lobby = receive_ranks(size)
            store = connect(0, timeout_s, is_master=True)
            lobby.store_port = _use(_port_of(store))
            return store
        found = find_store(address, ports, meeting, timeout_s)
        if found is not None:
            return connect(_use(found), timeout_s, is_master=False)
        why = f"no answer within {timeout_s:g} s"
    except NoPortError:
        why = "taken"
    except RankZeroEndedError:
        raise UserError("rank 0 ended before the ranks met; its log says why") from None
    except dist.DistError as error:
        why = _first_line(error)
    raise UserError(
        f"rank {rank} {'cannot listen at' if listens else 'found nobody at'} MASTER_ADDR:MASTER_PORT="
        f"{address}:{' or '.join(map(str, ports))} ({why}); another MASTER_PORT if it is taken; rank 0 must run on that machine"
    )


def seek_store(patience_s: float) -> dist.Store | None:
    """Waits for rank 0 as one that has something to tell it; None if it does not come. No torch is imported before.

    Raises:
        RankZeroEndedError: it was there, and is gone.
    """
    address, port = os.environ["MASTER_ADDR"], _port()
    if meeting := meeting_of_environment():
        found = find_store(address, ports_of_meeting(meeting, port), meeting, patience_s)
    else:
        found = port if _is_somebody_at(address, port, patience_s) else None
    if found is None:
        return None
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # rank 0 may end before; nobody wants its stack from here
    import torch.distributed as dist

    with suppress(dist.DistError):
        return connect(found, _GREET_S, is_master=False)
    return None


def connect(port: int, timeout_s: float, *, is_master: bool) -> dist.PrefixStore:
    """The store, with names of its own for every restart of torchrun's."""
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        port,
        is_master=is_master,
        timeout=datetime.timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=port != 0,
    )
    return dist.PrefixStore(f"mres/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _port() -> int:
    text = os.environ["MASTER_PORT"]
    if not text.isdigit() or int(text) > 65535:
        raise UserError(f"the environment variable MASTER_PORT={text!r} is not a port")
    return int(text)


def _port_of(store: dist.PrefixStore) -> int:
    return int(store.underlying_store.port)  # type: ignore[attr-defined]


def _use(port: int) -> int:
    """Whoever asks the environment finds the store itself."""
    os.environ["MASTER_PORT"] = str(port)
    return port


def _is_somebody_at(address: str, port: int, patience_s: float) -> bool:
    """Waits for a listener; by a bare socket, since a store that finds nobody complains at length."""
    deadline = time.monotonic() + patience_s
    while address and (left := deadline - time.monotonic()) > 0:
        with suppress(OSError), socket.create_connection((address, port), timeout=left):
            return True
        time.sleep(_LOOK_EVERY_S)
    return False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
