"""The rendezvous of the ranks, through a TCP store at MASTER_ADDR:MASTER_PORT: who is missing, double, or of another world.

torch alone waits for its time-out in each of these cases and names nobody. A rank that cannot even come, since its command
or config is wrong, tells the others here (`tell_refusal`), and so does rank 0, for which they would wait in vain.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mres.errors import UserError
from mres.supervise.agreement import in_words
from mres.supervise.lobby import RankZeroEndedError
from mres.supervise.meeting_point import open_store, seek_store

if TYPE_CHECKING:
    import torch.distributed as dist

_ARRIVED, _REFUSED, _AWAY, _TOLD, _HEARD = "arrived", "refused", "away", "told", "heard"
_LOOK_EVERY_S = 0.1
_STAY_S = 10.0
_SEEK_S = 60.0  # rank 0 may come later; under torchrun its store is there before
_HEAR_S = 60.0  # torchrun's store is there before any rank
_MORE_S = 2.0  # what keeps one rank away mostly keeps others away, too
_MOST_LINES = 20

_came = False  # this process to the rendezvous: from then on all hear of an error in other ways


def rendezvous(rank: int, size: int, timeout_s: float, device: str = "cpu") -> dist.Store:
    """Waits until all ranks are there; the store through which the process group then opens.

    Args:
        device: the kind that this rank computes on; a group of several kinds would hang.

    Raises:
        UserError: on every rank: other world sizes or kinds of device, a rank that is there twice, ranks that did not come
            in time.
    """
    global _came
    _came = True
    import torch.distributed as dist

    store = open_store(rank, size, timeout_s)
    alone = store.add(f"rank/{rank}", 1) == 1
    if not alone:
        store.set(_REFUSED, f"two processes have RANK={rank}; give each its own, or start through torchrun or srun")
    store.set(f"world/{rank}", json.dumps([size, device]))
    deadline = time.monotonic() + timeout_s
    arrived = False
    while not arrived or store.add(_ARRIVED, 0) < size:
        if alone and not arrived and store.check(["world/0"]):
            arrived = _is_of_this_world(store, rank, size, device)
        if rank == 0 and store.add(_AWAY, 0):
            store.compare_set(_REFUSED, "", _of_those_away(store, size))
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
    return bool(store.check([f"world/{rank}"]))


def _is_of_this_world(store: dist.Store, rank: int, size: int, device: str) -> bool:
    """Compares with rank 0; only who is of the same world is counted."""
    its_size, its_device = json.loads(store.get("world/0"))
    if (its_size, its_device) == (size, device):
        store.add(_ARRIVED, 1)
        return True
    if its_size != size:
        found = f"the ranks have different WORLD_SIZE: rank {rank} has {size}, rank 0 has {its_size}; start all with the same"
    else:
        found = (
            f"the ranks have different devices: rank {rank} on {socket.gethostname()} computes on {device}, rank 0 on "
            f"{its_device}; `nvidia-smi` tells on both machines what they have, tools/doctor.py why torch does not see it"
        )
    store.set(_REFUSED, found)
    return False


def tell_refusal(message: str) -> bool:
    """Before the rendezvous: tells those that wait there what keeps this rank away, so that they end with "rank N on …: …".

    False where rank 0 is not there, or does not take it up in time: then this rank must speak itself. A rank alone tells
    nobody.
    """
    numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if _came or not all(number.isdigit() for number in numbers):
        return True
    rank, size, port = map(int, numbers)
    if not 0 <= rank < size or size == 1 or port > 65535 or not os.environ.get("MASTER_ADDR"):
        return True
    if rank == 0:
        with suppress(UserError, RuntimeError):  # somebody else is at its port
            own = open_store(rank, size, _STAY_S)
            own.compare_set(_REFUSED, "", f"rank 0: {message}")
            _leave_with_all(own, rank, size, _STAY_S)
        return True
    try:
        store = seek_store(_SEEK_S)
    except RankZeroEndedError:  # by a trouble of its own, mostly the same one, which it has said
        return True
    if store is None:
        return False
    with suppress(RuntimeError):  # rank 0 is gone, and its own trouble said
        store.set(f"{_AWAY}/{rank}", json.dumps([socket.gethostname(), message]))
        store.add(_AWAY, 1)
        return _leave_with_all(store, rank, size, _HEAR_S)
    return True


def _of_those_away(store: dist.Store, size: int) -> str:
    """What keeps ranks away, each reason once with the ranks and machines that it is of; waits a moment for others."""
    deadline = time.monotonic() + _MORE_S
    while store.add(_AWAY, 0) + store.add(_ARRIVED, 0) < size and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    reasons: dict[str, dict[str, list[int]]] = {}
    for rank in range(size):
        if store.check([key := f"{_AWAY}/{rank}"]):
            host, message = json.loads(store.get(key))
            reasons.setdefault(message, {}).setdefault(host, []).append(rank)
    lines = [
        f"{', '.join(f'{in_words(ranks)} on {host}' for host, ranks in hosts.items())}: {message}"
        for message, hosts in reasons.items()
    ]
    more = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "\n".join([*lines[:_MOST_LINES], *more])


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
