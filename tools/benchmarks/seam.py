"""What the seam costs: the `fsdp` strategy against an FSDP2 loop written by hand, for the same model on the same ranks."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.claim import claim
from benchmarks.timing import alternate
from benchmarks.training import synthetic, training_config
from mres.model.task import SegmentationTask
from mres.parallel.fsdp import FsdpStrategy
from mres.parallel.strategy import AdamW
from mres.stream.batch import Batch
from mres.supervise.world import World, join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import parameter_groups

_STEPS = 4


def seam(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both loops take turns in the same processes, so that noise hits both; rank 0's clock counts."""
    seconds = run_distributed(_both, arguments.ranks, arguments, timeout_s=1800)[0]
    return {
        "bench": "seam",
        "what": f"{arguments.size}: {_STEPS} steps of {arguments.images} images x K={arguments.k} on {arguments.ranks} "
        "ranks over gloo, FSDP2",
        "seconds_a_step": {name: s / _STEPS for name, s in seconds.items()},
        "claims": {"mres / by hand": claim(seconds["mres"] / seconds["by hand"], "<=", 1.02)},
    }


def _both(arguments: argparse.Namespace) -> dict[str, float]:
    config = training_config(arguments, arguments.k, "fsdp")
    world = join_world(config.parallel.timeout_s)
    torch.set_num_threads(arguments.threads)
    try:
        task = SegmentationTask(config.model, config.loss)
        batch = synthetic(task, max(1, arguments.images // world.size), arguments.k)
        strategy = FsdpStrategy(config.parallel, world)
        model = task.build(0)
        adamw = AdamW(config.optim.betas, config.optim.eps, config.optim.max_grad_norm)
        strategy.wrap(model, task.blocks(model), parameter_groups(model, config.optim.weight_decay), adamw)
        loops: dict[str, Callable[[], object]] = {
            "mres": _repeated(lambda: _step_of(strategy, task, batch)),
            "by hand": _repeated(_by_hand(task, world, batch)),
        }
        return alternate(loops, arguments.rounds)
    finally:
        leave_world()


def _step_of(strategy: FsdpStrategy, task: SegmentationTask, batch: Batch) -> None:
    with strategy.micro_batch(last=True):
        strategy.backward(task.losses(strategy.module, batch)["loss"] / batch.valid_BK.sum())
    strategy.step(1e-4)


def _by_hand(task: SegmentationTask, world: World, batch: Batch) -> Callable[[], None]:
    """What anyone would write: the same units, gathered again for backward, AdamW, clipping by the global norm."""
    model = task.build(0)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in task.blocks(model):
        if sum(parameter.numel() for parameter in block.parameters()) >= FsdpStrategy.own_unit_from:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        (task.losses(model, batch)["loss"] / batch.valid_BK.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _repeated(step: Callable[[], None]) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(_STEPS):
            step()

    return steps
