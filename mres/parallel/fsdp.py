"""FSDP2: weights, gradients and moments sharded over all ranks, or over groups of them, block by block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from mres.parallel.config import ParallelConfig
from mres.parallel.materialise import materialise, tied_parameters
from mres.parallel.mesh import shard_mesh
from mres.parallel.native import NativeStrategy
from mres.supervise.world import World


class FsdpStrategy(NativeStrategy):
    """`fully_shard` on every block, then on the root."""

    # Blocks with fewer parameters are sharded with the root: below a few MB a collective costs its latency, not its
    # bytes. (`tiny` over gloo, 2 ranks: 11 units train 300 expressions a second, one unit about 400, DDP 470.)
    own_unit_from: ClassVar[int] = 500_000

    def __init__(self, config: ParallelConfig, world: World) -> None:
        super().__init__(config, world)
        self._mesh = shard_mesh(config, world)

    def describe(self) -> str:
        copies = f", {self._mesh.size(0)} copies of {self._mesh.size(1)} ranks" if self._mesh.ndim == 2 else ""
        return super().describe() + copies

    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        # The logits are a view and nobody writes into them, so the hook that an in-place write would drop is safe.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # Pinned memory is for copies to a GPU; on a CPU the same steps run, and nothing is farther away.
        to_cpu = CPUOffloadPolicy(pin_memory=self.world.device.type == "cuda")
        options: dict[str, Any] = {
            "mesh": self._mesh,
            "reshard_after_forward": self.config.reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=self.precision.compute, reduce_dtype=self.precision.master),
            "offload_policy": to_cpu if self.config.offload == "cpu" else OffloadPolicy(),
        }
        tied = tied_parameters(model)
        for block in blocks:
            parameters = set(block.parameters())
            # What two units share would be sharded twice and drift apart: such blocks stay with the root.
            shared_outside = not parameters.isdisjoint(tied - tied_parameters(block))
            if sum(parameter.numel() for parameter in parameters) >= self.own_unit_from and not shared_outside:
                fully_shard(block, **options)
        fully_shard(model, **options)
        # Shards get memory where they stay; buffers are wanted where forward runs.
        home = torch.device("cpu") if self.config.offload == "cpu" else self.world.device
        materialise(model, home, buffers_on=self.world.device)
        return model

    def sync_params(self) -> None:
        """Drops weights that were gathered before: forward gathers the ones that are there now."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _ranks_of_a_copy(self) -> int:
        return self._mesh.size(-1)

    def _sum_of_shards(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self._mesh.get_group("shard"))
        return value

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)
        return nullcontext()
