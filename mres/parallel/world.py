"""This process's place among the ranks, and the process group.

Any launcher will do: torchrun, deepspeed, srun through submitit, or none at all (one rank).
"""

import atexit
import datetime
import gc
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from mres.errors import UserError
from mres.parallel.config import ParallelConfig
from mres.parallel.meet import meet

_REMEDY = "start through torchrun, deepspeed or srun, or without any launcher on one rank"


@dataclass(frozen=True, slots=True)
class World:
    """Rank, size and device; `local_*` count the ranks of this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_world(config: ParallelConfig) -> World:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK … and opens the process group (gloo for CPU tensors, NCCL for CUDA's).

    Raises:
        UserError: variables that are missing or do not fit, a strategy that cannot run on so many ranks, ranks that do
            not come or are of another world (`meet`).
    """
    rank, size, local_rank, local_size = _from_environment()
    if config.strategy == "single" and size > 1:
        raise UserError(
            f"parallel.strategy=single runs on one rank and was launched on {size}; use parallel.strategy=ddp, fsdp or zero"
        )
    if size > 1:
        _check_address()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A launcher that shows every task only its own GPU leaves one device, whatever the local rank.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=config.timeout_s)
        # Alone there is nobody to meet: no address, no port.
        store: dist.Store = dist.HashStore() if size == 1 else meet(rank, size, config.timeout_s)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
        atexit.register(_let_threads_rest)
    return World(rank, size, local_rank, local_size, device)


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks, before it joins them.

    Raises:
        UserError: variables that are missing or do not fit.
    """
    rank, size, _, _ = _from_environment()
    return rank, size


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _let_threads_rest() -> None:
    """Before Python ends: gloo's threads get the interpreter until none of them is busy any more.

    A thread that still lets go of the last collective's tensors when Python is gone ends a run that was complete with
    "terminate called without an active exception"; it happens when the machine is busy.
    """
    leave_world()
    gc.collect()
    resting, deadline = 0, time.monotonic() + 5
    while resting < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        resting = resting + 1 if set(_thread_states("pt_gloo_runloop")) <= {"S"} else 0


def _thread_states(name: str) -> list[str]:
    """The kernel's letter for each of this process's threads of that name ("S": it waits); none but on Linux."""
    states = []
    for stat in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # a thread that has just ended
            called, _, rest = stat.read_text().partition(") ")
            if called.endswith(f"({name}"):
                states.append(rest[0])
    return states


def _from_environment() -> tuple[int, int, int, int]:
    """Rank, world size, local rank, local world size; without any of the variables, one rank alone.

    Raises:
        UserError: a value that is no number or does not fit the others, or one that is missing.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if rank >= size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}; {_REMEDY}")
    # A default would put all ranks of a machine on its first GPU.
    local_rank = _number("LOCAL_RANK", 0 if size == 1 else None)
    # The deepspeed launcher has its own name for the last one.
    local_size = _number("LOCAL_WORLD_SIZE", _number("LOCAL_SIZE", size))
    if local_rank >= local_size:
        raise UserError(f"LOCAL_RANK={local_rank} does not fit LOCAL_WORLD_SIZE={local_size}; {_REMEDY}")
    return rank, size, local_rank, local_size


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        found = f"{name} is not set" if text is None else f"{name}={text!r} is not a whole number"
        raise UserError(f"the environment variable {found}; {_REMEDY}")
    return int(text)


def _check_address() -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"the environment variable {name} is not set, so ranks cannot find one another; {_REMEDY}")
