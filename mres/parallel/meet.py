"""The ranks' first meeting, through a TCP store at MASTER_ADDR:MASTER_PORT: who is missing, double, or of another world.

torch alone waits for its time-out in each of these cases and names nobody.
"""

from __future__ import annotations

import datetime
import os
import time

import torch.distributed as dist

from mres.errors import UserError

_ARRIVED, _REFUSED, _TOLD = "arrived", "refused", "told"
_LOOK_EVERY_S = 0.1
_STAY_S = 10.0


def meet(rank: int, size: int, timeout_s: float) -> dist.Store:
    """Waits until all ranks are there; the store through which the process group then opens.

    Raises:
        UserError: on every rank: other world sizes, a rank that is there twice, ranks that did not come in time.
    """
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


def _refusal(store: dist.Store, rank: int, size: int) -> str:
    """What is wrong; rank 0, in whose process the store mostly is, stays until the others have read it."""
    text = store.get(_REFUSED).decode()
    store.add(_TOLD, 1)
    leave = time.monotonic() + _STAY_S
    while rank == 0 and store.add(_TOLD, 0) < size and time.monotonic() < leave:
        time.sleep(_LOOK_EVERY_S)
    return text


def _open(rank: int, timeout_s: float) -> dist.Store:
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdigit() or int(port) > 65535:
        raise UserError(f"the environment variable MASTER_PORT={port!r} is not a port")
    # torchrun's agent keeps the store and outlives its workers: every restart has its own names in it.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = datetime.timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore(
            address,
            int(port),
            is_master=rank == 0 and not of_agent,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistError as error:
        what = "cannot listen at" if rank == 0 and not of_agent else "found nobody at"
        raise UserError(
            f"rank {rank} {what} MASTER_ADDR:MASTER_PORT={address}:{port} ({_first_line(error)}); "
            "another MASTER_PORT if it is taken; rank 0 must run on that machine"
        ) from None
    return dist.PrefixStore(f"mres/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
