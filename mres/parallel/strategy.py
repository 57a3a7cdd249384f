"""The seam: everything that depends on how a model is spread over ranks goes through a `Strategy`.

The trainer knows no backend, the model knows no rank. State leaves and enters in one neutral form, PyTorch's
distributed checkpoint (DCP) with plain parameter names ("model.<name>", "optim.<name>.exp_avg" …), so a checkpoint of
any strategy and world size resumes under any other.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mres.dcp.local_shards import LocalShard
from mres.dcp.staging import Staging, write_shards
from mres.model.buffers import digests, persistent_buffers
from mres.parallel.config import ParallelConfig
from mres.parallel.ema import Average
from mres.parallel.precision import Precision, set_backends
from mres.supervise.world import SAVES, World

# Says, on the device, whether a step of this finite global gradient norm may be made: bool scalar of float32 scalar.
StepFilter = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Names of the parameters that share a weight decay and a factor of the learning rate.

    Made before wrapping, when names and shapes are still true. A parameter in no group does not move.
    """

    names: tuple[str, ...]
    weight_decay: float
    lr_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class AdamW:
    """What every strategy's optimizer is; the learning rate comes with each step."""

    betas: tuple[float, float]
    eps: float
    max_grad_norm: float


class Strategy(ABC):
    """One way to spread training over ranks.

    Call order: wrap, load_weights or load_state (unless the model came with values), then micro_batch/backward … step.
    """

    module: nn.Module
    model: nn.Module  # what was wrapped
    average: Average | None = None

    def __init__(self, config: ParallelConfig, world: World) -> None:
        self.config, self.world, self.precision = config, world, Precision.of(config)
        set_backends(config, world.device)
        # Agreement travels on the CPU beside the GPU's queue, so that no step waits for the device.
        self._cpu_group: dist.ProcessGroup | None = None
        if world.device.type == "cuda":
            self._cpu_group = _cpu_group(config.timeout_s)
        # Saving has its own, used in one thread at a time: what a background thread says there never mixes with what the
        # training thread says.
        self.save_group = _cpu_group(config.timeout_s, SAVES)
        self._staging = Staging()

    @abstractmethod
    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        """Moves, shards and wraps the model (`self.module` from then on) and makes its optimizer.

        Parameters on the meta device get memory for this rank's share only, with NaN in it.
        """

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes this rank's share of each whole parameter or buffer, one after another; called by all ranks together."""

    @abstractmethod
    def weight_shares(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's share of every float32 weight, by its plain name."""

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch; gradients are reduced in the step's `last` one only."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients of `loss`, whose mean over ranks is the loss of the global batch."""

    @abstractmethod
    def step(self, lr: float, step_filter: StepFilter | None = None) -> Tensor:
        """Clips by the global norm and moves the weights, unless the norm is not finite: then nothing moves, on any rank.

        Args:
            lr: times each group's `lr_scale`.
            step_filter: may refuse the step as well; it is called once, and must answer the same on every rank.

        Returns:
            The global gradient norm before clipping, a scalar on the device in the masters' type (not read by the host
            here).
        """

    @abstractmethod
    def masters(self) -> Sequence[Tensor]:
        """The float32 tensors, or this rank's shards of them, that the optimizer moves."""

    def sync_params(self) -> None:  # noqa: B027 - where forward reads the masters themselves, there is nothing to do
        """Makes the masters, which were written to, what forward computes with; called by all ranks together."""

    def track_average(self) -> None:
        """Keeps a moving average from now on; it travels in checkpoints as "ema.<name>"."""
        self.average = Average(self.masters())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, `module` computes with the averaged weights; entered by all ranks together."""
        assert self.average is not None, "track_average() comes first"
        self.average.swap()
        self.sync_params()
        try:
            yield
        finally:
            self.average.swap()
            self.sync_params()

    @abstractmethod
    def local_shards(self) -> dict[str, LocalShard]:
        """What this rank writes into a checkpoint, by neutral names: weights, buffers, moments, step counts, the average.

        They lie in the memory that training goes on in. Together, ranks have all, once. Nothing is gathered for it, and
        no rank waits for another.
        """

    def stage(self) -> dict[str, LocalShard]:
        """A copy of `local_shards` in host memory.

        It takes as much memory as that at the first call, and the same again at the next ones: write what one returned
        before the next.
        """
        return self._staging.copy(self.local_shards())

    def write_staged(self, state: dict[str, LocalShard], folder: Path) -> None:
        """Writes what `stage` returned into `folder` as DCP, from any one thread; called by all ranks together."""
        write_shards(state, folder, self.save_group)

    def save_state(self, folder: Path) -> None:
        """Writes `local_shards` without a copy; called by all ranks together."""
        self.write_staged(self.local_shards(), folder)

    @abstractmethod
    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        """Reads what any strategy saved, on any world size; without `optimizer`, the weights alone.

        An average that is kept starts anew from the weights where none was read.

        Raises:
            UserError: a tensor that is missing or has another shape, moments of a parameter that does not move here.
        """

    def forward_shares(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's share of every weight as forward reads it; by default those that `weight_shares` gives."""
        yield from ()

    def not_finite(self) -> list[str]:
        """The weights of which some rank's share is not finite (or was never filled), the same on every rank.

        What forward computes with is looked at as well as what is kept and saved.
        """
        shares = chain(self.weight_shares(), self.forward_shares())
        mine = [name for name, share in shares if not torch.isfinite(share).all()]
        return sorted({name for names in self.all_gather_object(mine) for name in names})

    def steps_made(self) -> int:
        """By how many steps the optimizer has moved the weights in all, which skipped ones do not count for; asked of all ranks."""
        shards = self.local_shards().items()
        mine = [
            int(box.max())
            for name, shard in shards
            if name.startswith("optim.") and name.endswith(".step")
            for box in shard.boxes.values()
        ]
        return max(max(of_rank, default=0) for of_rank in self.all_gather_object(mine))

    def diverged_buffers(self) -> list[str]:
        """The buffers that are not the same on every rank, of which a checkpoint would keep one rank's alone."""
        mine = digests(persistent_buffers(self.model))
        found = self.all_gather_object(mine)
        return sorted(name for name in set().union(*found) if len({of_rank.get(name) for of_rank in found}) > 1)

    def describe(self) -> str:
        """How and in which precision it trains, for the log."""
        config, world = self.config, self.world
        kernels = f", TF32 {'on' if config.tf32 else 'off'}" if world.device.type == "cuda" else ""
        offload = ", masters and moments in host memory" if config.offload == "cpu" else ""
        return f"{config.strategy} on {world.size} rank(s), {world.device}: {self.precision}{kernels}{offload}"

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums of `values` over all ranks, the same on every rank."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu_group)
        return total.tolist()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks, on its device."""
        dist.all_reduce(tensor)
        return tensor

    def gather_object(self, value: Any) -> list[Any] | None:
        """Every rank's `value`, in the order of ranks, on rank 0; None elsewhere."""
        values = [None] * self.world.size if self.world.is_main else None
        dist.gather_object(value, values, group=self._cpu_group)
        return values

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's `value` on every rank, for checks before the start."""
        values = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._cpu_group)
        return values

    def barrier(self) -> None:
        dist.barrier(group=self._cpu_group)


def _cpu_group(timeout_s: int, description: str | None = None) -> dist.ProcessGroup:
    timeout = datetime.timedelta(seconds=timeout_s)
    group = dist.new_group(backend="gloo", timeout=timeout, group_desc=description)
    assert isinstance(group, dist.ProcessGroup)
    return group
