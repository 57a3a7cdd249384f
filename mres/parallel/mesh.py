"""Which ranks share one copy of the model: all of them, or groups of `parallel.shard_ranks` (hybrid sharding, HSDP).

A group of neighbouring ranks holds one sharded copy. Weights are gathered within a group only; gradients are then
averaged between the ranks that hold the same shard. With groups as large as a machine, gathering never leaves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mres.errors import UserError
from mres.parallel.config import ParallelConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from mres.supervise.world import World


def check_world(config: ParallelConfig, size: int, local_size: int) -> None:
    """Refuses a number of ranks that the strategy cannot run on; no process group is needed to know that.

    Groups of `shard_ranks` must fill the world, and machines or be filled by them.

    Raises:
        UserError: names the keys of `parallel` and the ranks.
    """
    if config.strategy == "single" and size > 1:
        raise UserError(
            f"parallel.strategy=single runs on one rank and was launched on {size}; use parallel.strategy=ddp, fsdp or zero"
        )
    shard_ranks = config.shard_ranks
    if shard_ranks is not None and size % shard_ranks:
        fitting = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise UserError(
            f"parallel.shard_ranks={shard_ranks} does not divide the {size} ranks of this run (WORLD_SIZE); "
            f"use one of {fitting}, or leave it out: all ranks share one copy"
        )
    if shard_ranks is not None and shard_ranks % local_size and local_size % shard_ranks:
        raise UserError(
            f"parallel.shard_ranks={shard_ranks} would cut across machines of {local_size} ranks (LOCAL_WORLD_SIZE) "
            f"unevenly; use a divisor or a multiple of {local_size} that divides {size}"
        )


def shard_mesh(config: ParallelConfig, world: World) -> DeviceMesh:
    """The mesh that FSDP takes: ("shard",), or ("replicate", "shard") where several copies are kept."""
    from torch.distributed.device_mesh import init_device_mesh

    shard_ranks = config.shard_ranks or world.size
    assert world.size % shard_ranks == 0, "refused before the ranks joined"
    if shard_ranks == world.size:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (world.size // shard_ranks, shard_ranks)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))
