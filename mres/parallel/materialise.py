"""Models without memory: their parameters get it once they are sharded, and then their values, one after another.

A model comes on the meta device (names and shapes only). What it is given first is NaN, so that a weight which nothing
has filled is seen before the first step and not after the last.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def materialise(model: nn.Module, device: torch.device) -> None:
    """Memory on `device`, NaN in it, for all that is on the meta device (of a DTensor, this rank's shard); the rest moves."""
    assert_untied(model)
    # What Module.to_empty uses: FSDP takes notice of it.
    model._apply(lambda tensor: _with_memory(tensor, device, tensor.dtype))


def assert_untied(model: nn.Module) -> None:
    """A parameter of two modules would become two, of which one is never filled."""
    blank = [p for module in model.modules() for p in module.parameters(recurse=False) if p.is_meta]
    assert len(blank) == len({id(p) for p in blank}), "a model without memory must not share parameters between modules"


def materialise_own(module: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """The same for a module without its children; parameters in `dtype`. Returns whether there was one to give memory."""
    blank = any(parameter.is_meta for parameter in module.parameters(recurse=False))
    module._apply(lambda tensor: _with_memory(tensor, device, dtype), recurse=False)
    return blank


def _with_memory(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if not tensor.is_meta:
        return tensor.to(device)
    assert tensor.is_floating_point(), "buffers are made where the model is made"
    return torch.empty_like(tensor, device=device, dtype=dtype).fill_(torch.nan)


@torch.no_grad()
def write(parameter: Tensor, whole: Tensor) -> None:
    """Takes this rank's share of the whole tensor."""
    assert parameter.shape == whole.shape, (parameter.shape, whole.shape)
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
        return
    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        whole = whole.narrow(dim, offset if size else 0, size)  # a rank beyond the end has nothing
    parameter.to_local().copy_(whole)


@torch.no_grad()
def align_replicas(parameters: Iterable[Tensor]) -> None:
    """What several ranks hold, they take from the first of them: processors of different kinds may round differently."""
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            for dim, placement in enumerate(parameter.placements):
                if placement.is_replicate():
                    dist.broadcast(parameter.to_local(), group_src=0, group=parameter.device_mesh.get_group(dim))
        else:
            dist.broadcast(parameter, src=0)
