"""The rendezvous of the ranks, through a TCP store at MASTER_ADDR:MASTER_PORT: who is missing, double, or of another world.

torch alone waits for its time-out in each of these cases and names nobody. A rank that cannot even come, since its command
or config is wrong, tells the others here (`tell_refusal`); no torch is imported until somebody is there to be told.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mres.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

_ARRIVED, _REFUSED, _TOLD, _HEARD = "arrived", "refused", "told", "heard"
_LOOK_EVERY_S = 0.1
_STAY_S = 10.0
_SEEK_S = 20.0  # rank 0 imports torch before it opens the store
_GREET_S = 5.0  # it may have left again while torch was imported
_HEAR_S = 60.0  # torchrun's store is there before any rank

_came = False  # this process to the rendezvous: from then on all hear of an error in other ways


def rendezvous(rank: int, size: int, timeout_s: float) -> dist.Store:
    """Waits until all ranks are there; the store through which the process group then opens.

    Raises:
        UserError: on every rank: other world sizes, a rank that is there twice, ranks that did not come in time.
    """
    global _came
    _came = True
    import torch.distributed as dist

    store = _open(rank, timeout_s)
    alone = store.add(f"rank/{rank}", 1) == 1
    if not alone:
        store.set(_REFUSED, f"two processes have RANK={rank}; give each its own, or start through torchrun or srun")
    store.set(f"size/{rank}", str(size))
    deadline = time.monotonic() + timeout_s
    arrived = False
    while not arrived or store.add(_ARRIVED, 0) < size:
        if alone and not arrived and store.check(["size/0"]):
            arrived = _is_of_this_world(store, rank, size)
        if time.monotonic() > deadline:
            missing = ", ".join(str(r) for r in range(size) if not _is_there(store, r))
            store.set(
                _REFUSED,
                f"rank(s) {missing} of {size} did not come within parallel.timeout_s={timeout_s:g} s; look at their logs, and "
                "whether they were started at all",
            )
        if store.check([_REFUSED]):
            raise UserError(_refusal(store, rank, size))
        time.sleep(_LOOK_EVERY_S)
    return dist.PrefixStore("group", store)


def _is_there(store: dist.Store, rank: int) -> bool:
    return bool(store.check([f"size/{rank}"]))


def _is_of_this_world(store: dist.Store, rank: int, size: int) -> bool:
    """Compares with rank 0; only who is of the same world is counted."""
    first = int(store.get("size/0"))
    if first == size:
        store.add(_ARRIVED, 1)
        return True
    store.set(
        _REFUSED,
        f"the ranks have different WORLD_SIZE: rank {rank} has {size}, rank 0 has {first}; start all with the same",
    )
    return False


def tell_refusal(message: str) -> bool:
    """Before the rendezvous: tells those that wait there what keeps this rank away, so that they end with "rank N: …".

    False where it could be left there, but rank 0 did not take it up in time. Where there is nobody to tell (one rank,
    rank 0 itself, nobody at MASTER_ADDR:MASTER_PORT) nothing happens: rank 0 speaks, and had the same trouble.
    """
    numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if _came or not all(number.isdigit() for number in numbers):
        return True
    rank, size, port = map(int, numbers)
    if not 0 < rank < size or port > 65535 or not _is_somebody_at(os.environ.get("MASTER_ADDR", ""), port):
        return True
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # rank 0 may end before; nobody wants its stack from here
    import torch.distributed as dist

    with suppress(dist.DistError):
        store = _connect(port, _GREET_S, is_master=False)
        store.compare_set(_REFUSED, "", f"rank {rank}: {message}")  # the first reason stays
        return _leave_with_all(store, rank, size, _HEAR_S)
    return True


def _is_somebody_at(address: str, port: int) -> bool:
    """Waits for a listener; by a bare socket, since a store that finds nobody complains at length."""
    deadline = time.monotonic() + _SEEK_S
    while address and (left := deadline - time.monotonic()) > 0:
        with suppress(OSError), socket.create_connection((address, port), timeout=left):
            return True
        time.sleep(_LOOK_EVERY_S)
    return False


def _refusal(store: dist.Store, rank: int, size: int) -> str:
    """What is wrong, once all have read it."""
    text = store.get(_REFUSED).decode()
    _leave_with_all(store, rank, size, 2 * _STAY_S)
    return text


def _leave_with_all(store: dist.Store, rank: int, size: int, patience_s: float) -> bool:
    """Rank 0 speaks, and the store is mostly in its process: it stays until all have read. Whether it came.

    The others stay for it: a launcher ends all ranks, also the one that is about to speak, once one has left.
    """
    store.add(_TOLD, 1)
    leave = time.monotonic() + (_STAY_S if rank == 0 else patience_s)
    if rank == 0:
        while store.add(_TOLD, 0) < size and time.monotonic() < leave:
            time.sleep(_LOOK_EVERY_S)
        store.set(_HEARD, "")
        time.sleep(3 * _LOOK_EVERY_S)  # the others see it before the store goes
        return True
    while not (is_heard := store.check([_HEARD])) and time.monotonic() < leave:
        time.sleep(_LOOK_EVERY_S)
    return bool(is_heard)


def _open(rank: int, timeout_s: float) -> dist.Store:
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdigit() or int(port) > 65535:
        raise UserError(f"the environment variable MASTER_PORT={port!r} is not a port")
    # torchrun's agent keeps the store and outlives its workers.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return _connect(int(port), timeout_s, is_master=rank == 0 and not of_agent)
    except dist.DistError as error:
        what = "cannot listen at" if rank == 0 and not of_agent else "found nobody at"
        raise UserError(
            f"rank {rank} {what} MASTER_ADDR:MASTER_PORT={address}:{port} ({_first_line(error)}); "
            "another MASTER_PORT if it is taken; rank 0 must run on that machine"
        ) from None


def _connect(port: int, timeout_s: float, *, is_master: bool) -> dist.Store:
    """The store, with names of its own for every restart of torchrun's."""
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        port,
        is_master=is_master,
        timeout=datetime.timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return dist.PrefixStore(f"mres/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
