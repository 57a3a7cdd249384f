"""A rank's share of a tensor as boxes: what PyTorch's distributed checkpoint (DCP) writes from and reads into.

Whole tensors, shards of DTensors and ranges of flattened tensors (ZeRO) are all boxes: an offset in each dimension, and
memory of the box's shape. So every rank writes its own share and reads its own share, and nothing is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DeviceMesh, DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True, slots=True, eq=False)
class LocalShard:
    """What a rank has of a tensor.

    Attributes:
        shape: of the whole tensor.
        dtype: of the whole tensor.
        boxes: memory by the box's offset in the whole; none where the rank has no element of it.
    """

    shape: torch.Size
    dtype: torch.dtype
    boxes: Mapping[torch.Size, Tensor]

    @classmethod
    @torch.no_grad()  # a DTensor then gives its shard away as it is
    def of(cls, tensor: Tensor) -> LocalShard:
        """A DTensor's local shard, or all of a plain tensor, in its own memory."""
        if not isinstance(tensor, DTensor):
            return cls(tensor.shape, tensor.dtype, {torch.Size([0] * tensor.dim()): tensor.detach()})
        offset = _offset_of_shard(tensor.shape, tensor.device_mesh, tensor.placements)
        shard = tensor.to_local().detach()
        return cls(tensor.shape, tensor.dtype, {offset: shard} if shard.numel() else {})

    @classmethod
    def of_range(cls, shape: torch.Size, start: int, flat: Tensor) -> LocalShard:
        """The elements from `start` on of the flattened tensor, as they lie in `flat`, in its own memory."""
        boxes, used = {}, 0
        for offset, sizes in boxes_of_range(tuple(shape), start, start + flat.numel()):
            numel = math.prod(sizes)
            boxes[torch.Size(offset)] = flat.detach().narrow(0, used, numel).view(sizes)
            used += numel
        return cls(shape, flat.dtype, boxes)

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        """DCP's protocol: one thing to write a box."""
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties(dtype=self.dtype), self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """DCP's protocol: where the boxes lie."""
        return [ChunkStorageMetadata(offset, box.shape) for offset, box in self.boxes.items()]


def local_tensors(state: Mapping[str, LocalShard]) -> Iterator[tuple[str, Tensor]]:
    """The memory of every box, by the tensor's name."""
    for name, shard in state.items():
        for box in shard.boxes.values():
            yield name, box


_Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, sizes


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> Iterator[_Box]:
    """The elements start … stop-1 of a flattened tensor as boxes, in their order: at most 2n-1 in n dimensions."""
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first_full, end_full = -(-start // row), stop // row
    if start < first_full * row:  # the end of a row, or all of the range within one
        yield from _in_row(shape, start // row, start, min(stop, first_full * row))
    if first_full < end_full:
        yield (first_full, *[0] * (len(shape) - 1)), (end_full - first_full, *shape[1:])
    if first_full <= end_full and end_full * row < stop:
        yield from _in_row(shape, end_full, end_full * row, stop)


def _in_row(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[_Box]:
    before = index * math.prod(shape[1:])
    for offset, sizes in boxes_of_range(shape[1:], start - before, stop - before):
        yield (index, *offset), (1, *sizes)


@cache
def _offset_of_shard(shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> torch.Size:
    return torch.Size(compute_local_shape_and_global_offset(shape, mesh, placements)[1])


def assign_owners(shapes: Mapping[str, torch.Size], num_ranks: int) -> dict[str, int]:
    """Which rank writes each of the tensors that all have: the largest first, each to the rank with the least so far."""
    loads = [0] * num_ranks
    owners = {}
    for name in sorted(shapes, key=lambda n: (-shapes[n].numel(), n)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += shapes[name].numel()
    return owners
