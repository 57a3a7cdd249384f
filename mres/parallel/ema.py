"""The moving average of the weights, sharded as the weights are: no rank keeps more of it than of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor


class Average:
    """An exponential moving average of this rank's masters, shard for shard; nothing of it crosses ranks.

    Attributes:
        of: the average of each master, of its form (a DTensor's is a DTensor).
    """

    def __init__(self, masters: Sequence[Tensor]) -> None:
        self.of = {master: master.detach().clone() for master in masters}

    def restart(self) -> None:
        """Begins anew from what the masters are."""
        for master, average in self.of.items():
            local(average).copy_(local(master))

    def update(self, weight: float) -> None:
        """Moves the averages by `weight` of their distance towards the masters."""
        averages = [local(average) for average in self.of.values()]
        if averages:
            torch._foreach_lerp_(averages, [local(master) for master in self.of], weight)

    def swap(self) -> None:
        """Masters and averages change places, tensor by tensor; a second call puts every bit back."""
        for master, average in self.of.items():
            kept = local(master).clone()
            local(master).copy_(local(average))
            local(average).copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, in the tensor's own memory."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def holds_average(folder: Path) -> bool:
    """Whether a checkpoint has an average beside the weights."""
    names = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return any(name.startswith("ema.") for name in names)
