"""This process's rank and device, and the process group.

Any launcher will do: torchrun, deepspeed, srun, or none at all (one rank).
"""

import datetime
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mres.errors import UserError
from mres.supervise.network import check_chosen_interface, choose_interface
from mres.supervise.rank_env import REMEDY, read_rank_env
from mres.supervise.rendezvous import rendezvous

# How the group is described whose collectives another thread begins, whenever it writes a checkpoint.
SAVES = "mres_saves"


@dataclass(frozen=True, slots=True)
class World:
    """Rank, size and device; `local_*` count the ranks of this machine. `network`: what rank 0 says of how they talk."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    network: str = ""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_world(timeout_s: int) -> World:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK … and opens the process group (gloo for CPU tensors, NCCL for CUDA's).

    Args:
        timeout_s: how long a collective, and the ranks at the start, wait for a rank.

    Raises:
        UserError: variables that are missing or do not fit, ranks that do not come or are of another world.
    """
    env = read_rank_env()
    if env.size > 1:
        _check_address()
        check_chosen_interface()
    network = ""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A launcher that shows every task only its own GPU leaves one device, whatever the local rank.
        device = torch.device("cuda", env.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=timeout_s)
        store: dist.Store = dist.HashStore()  # alone there is no rendezvous: no address, no port
        if env.size > 1:
            store = rendezvous(env.rank, env.size, timeout_s, device.type)
            network = choose_interface(store, env.rank, env.size)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=env.rank, world_size=env.size)
        _wait_no_longer(timeout)
    return World(env.rank, env.size, env.local_rank, env.local_size, device, network)


def _wait_no_longer(timeout: datetime.timedelta) -> None:
    """Groups that are opened later, also by device meshes and by DeepSpeed, which name no time-out, wait as long as the first.

    By torch's own defaults those of gloo would wait 30 minutes, those of NCCL 10.
    """
    from torch.distributed import distributed_c10d

    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, name, timeout)


def collectives_begun() -> int:
    """How many collectives this process has begun in all its groups but that of `SAVES`; 0 where there is none.

    Ranks begin the same ones in the same order: of two that wait for one another, the one that has not come has fewer.
    Any thread may ask.
    """
    from torch.distributed import distributed_c10d

    if not dist.is_initialized():
        return 0
    return sum(_begun_in(group) for group in list(distributed_c10d._world.pg_map) if group.group_desc != SAVES)


def _begun_in(group: dist.ProcessGroup) -> int:
    """Asked of its backends: a group that has one for CPU tensors and one for CUDA's tells of one of them only."""
    begun: dict[Any, int] = {}
    for device in group._device_types:
        with suppress(RuntimeError):  # a backend that does not count
            backend: Any = group._get_backend(device)
            begun[backend] = backend._get_sequence_number_for_group()
    return sum(begun.values())


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_address() -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"the environment variable {name} is not set, so ranks cannot find one another; {REMEDY}")
