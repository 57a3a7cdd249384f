"""Which class a config's strategy is."""

from __future__ import annotations

from mres.parallel.config import ParallelConfig
from mres.parallel.mesh import check_world
from mres.parallel.strategy import Strategy
from mres.supervise.world import World


def build_strategy(config: ParallelConfig, world: World) -> Strategy:
    """The strategy of the config; backends are imported only where they run.

    Raises:
        UserError: it cannot run on so many ranks, or on this device.
    """
    check_world(config, world.size, world.local_size)
    if config.strategy == "fsdp":
        from mres.parallel.fsdp import FsdpStrategy

        return FsdpStrategy(config, world)
    if config.strategy == "zero":
        from mres.parallel.zero.strategy import ZeroStrategy

        return ZeroStrategy(config, world)
    from mres.parallel.native import DdpStrategy, SingleStrategy

    return (DdpStrategy if config.strategy == "ddp" else SingleStrategy)(config, world)
