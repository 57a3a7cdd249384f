"""Models without memory: their parameters get it once they are sharded, and then their values, one after another.

A model comes with parameters on the meta device (names and shapes only) and real buffers. What parameters are given
first is NaN, so that a weight which nothing has filled is seen before the first step and not after the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


class Materialiser:
    """Gives modules memory on `device` for what is on the meta device (of a DTensor, this rank's shard), and moves the rest.

    A parameter of several modules stays one, as does a buffer.

    Args:
        device: of parameters.
        buffers_on: the device of buffers; default: the same.
        dtype: of parameters that get memory; default: their own.
    """

    def __init__(
        self, device: torch.device, *, buffers_on: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._device, self._buffers_on, self._dtype = device, buffers_on or device, dtype
        self._made: dict[Tensor, Tensor] = {}

    def fill(self, module: nn.Module) -> list[nn.Parameter]:
        """The module without its children; returns its parameters that got memory now."""
        blank = []
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if not parameter.is_meta:
                if parameter.device != self._device:
                    parameter.data = parameter.data.to(self._device)
                continue
            if parameter not in self._made:
                self._made[parameter] = self._with_memory(parameter)
                blank.append(self._made[parameter])
            module._parameters[name] = self._made[parameter]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                assert not buffer.is_meta, f"{name}: buffers are made where the model is made"
                if buffer not in self._made:
                    self._made[buffer] = buffer.to(self._buffers_on).contiguous()  # expanded ones cannot be written
                module._buffers[name] = self._made[buffer]
        return blank  # type: ignore[return-value]

    def _with_memory(self, parameter: nn.Parameter) -> nn.Parameter:
        memory = torch.empty_like(parameter, device=self._device, dtype=self._dtype or parameter.dtype)
        return nn.Parameter(memory.fill_(torch.nan), parameter.requires_grad)


def materialise(model: nn.Module, device: torch.device, *, buffers_on: torch.device | None = None) -> None:
    """`Materialiser.fill` of all modules."""
    materialiser = Materialiser(device, buffers_on=buffers_on)
    for module in model.modules():
        materialiser.fill(module)
    model._apply(lambda tensor: tensor)  # FSDP takes notice of it


def tied_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Those that have several names."""
    places = Counter(p for module in model.modules() for p in module._parameters.values() if p is not None)
    return {parameter for parameter, number in places.items() if number > 1}


@torch.no_grad()
def write(tensor: Tensor, whole: Tensor) -> None:
    """Takes this rank's share of the whole tensor."""
    assert tensor.shape == whole.shape, (tensor.shape, whole.shape)
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
        return
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        whole = whole.narrow(dim, offset if size else 0, size)  # a rank beyond the end has nothing
    tensor.to_local().copy_(whole)


@torch.no_grad()
def align_replicas(tensors: Iterable[Tensor]) -> None:
    """What several ranks hold, they take from the first of them: processors of different kinds may round differently."""
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            for dim, placement in enumerate(tensor.placements):
                if placement.is_replicate():
                    dist.broadcast(tensor.to_local(), group_src=0, group=tensor.device_mesh.get_group(dim))
        else:
            bits = tensor.detach().contiguous().view(-1).view(torch.uint8)  # gloo does not know every type
            dist.broadcast(bits, src=0)
            tensor.copy_(bits.view(tensor.dtype).view(tensor.shape))
