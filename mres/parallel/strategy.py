"""The seam: everything that depends on how a model is spread over ranks goes through a `Strategy`.

The trainer knows no backend, the model knows no rank. State leaves and enters in one neutral form, PyTorch's
distributed checkpoint (DCP) with plain parameter names ("model.<name>", "optim.<name>.exp_avg" …), so a checkpoint of
any strategy and world size resumes under any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mres.parallel.config import ParallelConfig
from mres.parallel.world import World


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Names of the parameters that share a weight decay; made before wrapping, when names and shapes are still true."""

    names: tuple[str, ...]
    weight_decay: float


@dataclass(frozen=True, slots=True)
class AdamW:
    """What every strategy's optimizer is; the learning rate comes with each step."""

    betas: tuple[float, float]
    eps: float
    max_grad_norm: float


class Strategy(ABC):
    """One way to spread training over ranks. Call order: wrap, (load_state,) then micro_batch/backward … step."""

    module: nn.Module

    def __init__(self, config: ParallelConfig, world: World) -> None:
        self.config, self.world = config, world
        # Agreement travels on the CPU beside the GPU's queue, so that no step waits for the device.
        self._cpu_group: dist.ProcessGroup | None = None
        if world.device.type == "cuda":
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._cpu_group = group

    @abstractmethod
    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        """Moves, shards and wraps the model (`self.module` from then on) and makes its optimizer."""

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch; gradients are reduced in the step's `last` one only."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of `loss`, whose mean over ranks is the loss of the global batch."""

    @abstractmethod
    def step(self, lr: float) -> Tensor:
        """Clips by the global norm and moves the weights, unless the norm is not finite: then nothing moves, on any rank.

        Returns:
            The global gradient norm before clipping, a float32 scalar on the device (not read by the host here).
        """

    @abstractmethod
    def save_state(self, folder: Path) -> None:
        """Writes weights and optimizer moments into `folder` as DCP; called by all ranks together."""

    @abstractmethod
    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        """Reads what any strategy saved, on any world size; without `optimizer`, the weights alone."""

    def agree(self, values: Sequence[float]) -> list[float]:
        """Sums of `values` over all ranks, the same on every rank."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu_group)
        return total.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks, on its device."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's `value`, in the order of ranks, on rank 0; None elsewhere."""
        values = [None] * self.world.size if self.world.is_main else None
        dist.gather_object(value, values, group=self._cpu_group)
        return values

    def same_everywhere(self, value: Any) -> list[Any]:
        """Every rank's `value` on every rank, for checks before the start."""
        values = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._cpu_group)
        return values

    def barrier(self) -> None:
        dist.barrier(group=self._cpu_group)


def build_strategy(config: ParallelConfig, world: World) -> Strategy:
    """The strategy of the config; backends are imported only where they run."""
    if config.strategy == "fsdp":
        from mres.parallel.fsdp import FsdpStrategy

        return FsdpStrategy(config, world)
    if config.strategy == "zero":
        from mres.parallel.zero import ZeroStrategy

        return ZeroStrategy(config, world)
    from mres.parallel.native import DdpStrategy, SingleStrategy

    return (DdpStrategy if config.strategy == "ddp" else SingleStrategy)(config, world)
