"""The seam holds for strategies that mres does not know: one in a few lines trains, saves and resumes as the others do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_training as toy
from torch import Tensor, nn

from mres.parallel.config import ParallelConfig
from mres.parallel.native import NativeStrategy, SingleStrategy
from mres.parallel.strategy import StepFilter, Strategy
from mres.supervise.world import World, join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import parameter_groups

STEPS, SAVED = 8, 5


class ByHandStrategy(NativeStrategy):
    """Replicas whose gradients are averaged by hand, in one flat all-reduce at the step: no DDP, no sharding."""

    def _spread(self, model: nn.Module, blocks: object) -> nn.Module:
        return model.to(self.world.device)

    def step(self, lr: float, step_filter: StepFilter | None = None) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.all_reduce(flat).div_(self.world.size)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return super().step(lr, step_filter)


def wrapped(kind: type[Strategy], world: World, seed: int) -> Strategy:
    model = toy.model_of(seed)
    strategy = kind(ParallelConfig(strategy="single"), world)
    strategy.wrap(model, model.blocks(), parameter_groups(model, 0.05), toy.ADAMW)
    return strategy


def train_by_hand(folder: Path) -> tuple[toy.Course, toy.Course, toy.Course]:
    """The course with accumulation, the course taken up from its checkpoint, and that of one process."""
    world = join_world(ParallelConfig(strategy="ddp").timeout_s)
    try:
        strategy = wrapped(ByHandStrategy, world, seed=0)
        course = toy.train(strategy, range(SAVED), accumulate=2)
        strategy.save_state(folder)
        rest = toy.train(strategy, range(SAVED, STEPS), accumulate=2)
        course = toy.Course(course.losses + rest.losses, course.norms + rest.norms)
        resumed = wrapped(ByHandStrategy, world, seed=9)
        resumed.load_state(folder, optimizer=True)
        alone = wrapped(SingleStrategy, World(0, 1, 0, 1, world.device), seed=0)
        return (
            course,
            toy.train(resumed, range(SAVED, STEPS), accumulate=2),
            toy.train(alone, range(STEPS)),
        )
    finally:
        leave_world()


@pytest.mark.slow
def test_a_strategy_of_ones_own_trains_as_one_process_does(tmp_path: Path) -> None:
    for course, resumed, alone in run_distributed(train_by_hand, 2, tmp_path / "state"):
        assert course.losses == pytest.approx(alone.losses, rel=1e-5)
        assert course.norms == pytest.approx(alone.norms, rel=1e-4)
        assert resumed.losses == course.losses[SAVED:], "to the bit"
        assert len(set(course.losses)) == STEPS
