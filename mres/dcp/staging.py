"""Local shards to and from the disk, by way of a copy in host memory where training must not wait for the disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from mres.dcp.local_shards import LocalShard
from mres.errors import UserError


class Staging:
    """Host copies of shards; their memory is taken at the first copy and used again at the next ones."""

    def __init__(self) -> None:
        self._buffers: dict[str, LocalShard] = {}

    def copy(self, shards: Mapping[str, LocalShard]) -> dict[str, LocalShard]:
        """Copies that share no memory with `local_shards`; they overwrite what the last call returned."""
        staged = {}
        for name, shard in shards.items():
            if name not in self._buffers or not _alike(self._buffers[name], shard):
                self._buffers[name] = _host_memory(shard)
            staged[name] = self._buffers[name]
            for offset, box in shard.boxes.items():
                staged[name].boxes[offset].copy_(box, non_blocking=True)
        if torch.cuda.is_available():  # what was copied to pinned memory is there only now
            torch.cuda.current_stream().synchronize()
        return staged


def host_bytes(shards: Mapping[str, LocalShard]) -> int:
    """What copies of them take; of a GPU's, torch rounds every pinned box up to a power of two."""
    boxes = (box for shard in shards.values() for box in shard.boxes.values() if box.nbytes)
    return sum(1 << (box.nbytes - 1).bit_length() if box.device.type == "cuda" else box.nbytes for box in boxes)


def _alike(one: LocalShard, other: LocalShard) -> bool:
    """Whether one's memory can take the other: a buffer may change its shape from step to step."""
    shapes = [{offset: box.shape for offset, box in shard.boxes.items()} for shard in (one, other)]
    return (one.shape, one.dtype, shapes[0]) == (other.shape, other.dtype, shapes[1])


def _host_memory(shard: LocalShard) -> LocalShard:
    # Every box by itself: of a view into something larger, torch.save would make a copy first.
    boxes = {
        offset: torch.empty(box.shape, dtype=box.dtype, pin_memory=box.device.type == "cuda")
        for offset, box in shard.boxes.items()
    }
    return LocalShard(shard.shape, shard.dtype, boxes)


def write_shards(shards: dict[str, LocalShard], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Writes what the ranks of `group` have together; called by all of them."""
    dcp.save(dict(shards), storage_writer=dcp.FileSystemWriter(folder), planner=_SavePlanner(), process_group=group)


def read_shards(shards: dict[str, LocalShard], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fills the boxes' memory, each rank its own; called by all ranks of `group`.

    Raises:
        UserError: a tensor that is not there or has another shape (nothing was read then), or that cannot be read as a
            tensor and nothing else.
    """
    reader = dcp.FileSystemReader(folder)
    _check(shards, reader.read_metadata(), folder)
    try:
        dcp.load(dict(shards), storage_reader=reader, planner=_LoadPlanner(), process_group=group)
    except CheckpointException as error:
        cause = str(next(iter(error.failures.values()))[0]).strip().splitlines()[0]
        raise UserError(f"the checkpoint '{folder}' cannot be read: {cause}; take another one") from None


def _check(shards: Mapping[str, LocalShard], metadata: Metadata, folder: Path) -> None:
    stored = metadata.state_dict_metadata
    for name, shard in shards.items():
        entry = stored.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"the checkpoint '{folder}' has no tensor '{name}', which this model needs")
        if entry.size != shard.shape:
            raise UserError(
                f"the checkpoint '{folder}' has '{name}' of shape {tuple(entry.size)}, this model's is {tuple(shard.shape)}"
            )


def refuse_strangers(folder: Path, parameters: Collection[str], moving: Collection[str] | None) -> None:
    """What would be left behind in silence: weights of other names and, of those that do not move here, moments.

    `moving` is None where moments are left behind on purpose.

    Raises:
        UserError: naming the first.
    """
    for name in sorted(dcp.FileSystemReader(folder).read_metadata().state_dict_metadata):
        kind, _, rest = name.partition(".")
        if kind == "model" and rest not in parameters:
            raise UserError(f"the checkpoint '{folder}' has a weight '{rest}', which this model has not")
        parameter = rest.rpartition(".")[0]
        if kind == "optim" and moving is not None and parameter not in moving:
            raise UserError(
                f"the checkpoint '{folder}' has the optimizer's state of '{parameter}', which does not move here; "
                "optim.freeze must be what it was"
            )


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return _box(self.state_dict, index)


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # Not the parent's, which drops from the state whatever is no torch.Tensor.
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return _box(self.state_dict, index)


def _box(state: Mapping[str, LocalShard], index: MetadataIndex) -> Tensor:
    assert index.offset is not None
    return state[index.fqn].boxes[index.offset]
