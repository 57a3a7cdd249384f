"""Parameters that no optimizer moves, under DeepSpeed ZeRO: it has no float32 master of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Frozen:
    """The frozen parameters of a model; made before DeepSpeed rounds or partitions them.

    Attributes:
        parameters: the live ones by name, which forward reads, in DeepSpeed's form.
        exact: the float32 values in host memory, of those parameters that this rank writes into checkpoints.
    """

    def __init__(self, model: nn.Module, owners: Mapping[str, int], rank: int) -> None:
        """`owners` says which rank writes each parameter of the model."""
        named = dict(model.named_parameters())
        self._rank = rank
        self.parameters = {name: parameter for name, parameter in named.items() if not parameter.requires_grad}
        self.exact = {name: _exact(parameter) for name, parameter in self.parameters.items() if owners[name] == rank}

    def find(self, model: nn.Module) -> None:
        """Once the model has memory: what it was given are other parameters."""
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if name in self.parameters}

    def write(self, name: str, whole: Tensor) -> None:
        """Takes the whole float32 tensor; what is gathered from shards (stage 3) is gathered anew by `sync_params`."""
        if name in self.exact:
            self.exact[name].copy_(whole)
        parameter = self.parameters[name]
        shard: Tensor | None = getattr(parameter, "ds_tensor", None)
        if shard is None:
            parameter.data.copy_(whole)
            return
        # Stage 3 cuts every parameter into as many equal shards as there are ranks; the last ones are padded.
        start = min(self._rank * shard.numel(), whole.numel())
        numel = min(shard.numel(), whole.numel() - start)
        shard.data.narrow(0, 0, numel).copy_(whole.flatten().narrow(0, start, numel))


def _exact(parameter: nn.Parameter) -> Tensor:
    if parameter.is_meta:
        return torch.full(parameter.shape, torch.nan)
    return parameter.detach().to("cpu", torch.float32, copy=True)
