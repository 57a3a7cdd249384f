"""The real trainer in this process, with losses that are not finite where a test wants them."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mres.config import Config
from mres.model.task import SegmentationTask
from mres.stream.batch import Batch
from mres.stream.sets import TrainingSets
from mres.supervise.stop_request import StopRequest
from mres.supervise.world import join_world, leave_world
from mres.train import session


class PoisonedTask(SegmentationTask):
    """The model's task, of which some steps' losses are not numbers, or infinite while their gradients are not."""

    poisoned: frozenset[int] = frozenset()
    infinite: frozenset[int] = frozenset()
    step = 0

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        sums = super().losses(module, batch)
        self.step += 1
        factor = math.nan if self.step in self.poisoned else 1.0
        more = math.inf if self.step in self.infinite else 0.0
        return {name: value * factor + more for name, value in sums.items()}


def fit(
    config: Config, monkeypatch: pytest.MonkeyPatch, poisoned: set[int], infinite: frozenset[int] = frozenset()
) -> SimpleNamespace:
    """Trains in this process; returns the exit code and the weights after every step."""
    monkeypatch.setattr(session, "SegmentationTask", PoisonedTask)
    monkeypatch.setattr(PoisonedTask, "poisoned", frozenset(poisoned))
    monkeypatch.setattr(PoisonedTask, "infinite", infinite)
    world = join_world(config.parallel.timeout_s)
    torch.set_num_threads(1)
    try:
        running = session._Session(config, TrainingSets.open(config.data), world, StopRequest())
        weights: list[Tensor] = []
        step = running.strategy.step

        def recorded(lr: float, *accept) -> Tensor:
            norm = step(lr, *accept)
            weights.append(torch.cat([p.detach().flatten().clone() for p in running.strategy.module.parameters()]))
            return norm

        monkeypatch.setattr(running.strategy, "step", recorded)
        return SimpleNamespace(code=running.run(), weights=weights)
    finally:
        leave_world()
