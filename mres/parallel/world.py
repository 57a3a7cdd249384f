"""This process's place among the ranks, and the process group.

Any launcher will do: torchrun, deepspeed, srun through submitit, or none at all (one rank).
"""

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mres.errors import UserError
from mres.parallel.config import ParallelConfig


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
        UserError: variables that do not fit, or a strategy that cannot run on so many ranks.
    """
    rank, size, local_rank, local_size = _from_environment()
    if config.strategy == "single" and size > 1:
        raise UserError(
            f"parallel.strategy=single runs on one rank and was launched on {size}; use parallel.strategy=ddp, fsdp or zero"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # A launcher that shows every task only its own GPU leaves one device, whatever the local rank.
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=config.timeout_s)
        # Alone there is nobody to meet: no address, no port.
        alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if size == 1 else {}
        dist.init_process_group(backend, timeout=timeout, **alone)
    return World(rank, size, local_rank, local_size, device)


def leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _from_environment() -> tuple[int, int, int, int]:
    values = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", None)):
        text = os.environ.get(name, default if default is not None else str(values[1]))
        if not text.isdigit():
            raise UserError(f"the environment variable {name}={text!r} is not a whole number; start through torchrun, deepspeed or srun")
        values.append(int(text))
    rank, size, local_rank, local_size = values
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}; start through torchrun, deepspeed or srun")
    return rank, size, local_rank, local_size
