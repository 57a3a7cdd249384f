"""Ranges as boxes, owners, staging, and what of it DCP writes and reads."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mres.dcp.local_shards import LocalShard, assign_owners, boxes_of_range, local_tensors
from mres.dcp.staging import Staging, read_shards, write_shards
from mres.errors import UserError

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)
shape_lists = st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=30)


@given(shape=shapes, data=st.data())
def test_boxes_cover_a_range_exactly_and_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    numel = math.prod(shape)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, numel), st.integers(0, numel))))
    whole = torch.arange(numel).view(shape)
    boxes = list(boxes_of_range(shape, start, stop))
    found = [whole[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].flatten() for box in boxes]
    assert torch.cat([*found, torch.empty(0)]).tolist() == list(range(start, stop)), "no element twice, none left out"
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(sizes=shape_lists, world_size=st.integers(1, 9))
def test_every_tensor_has_one_owner_and_no_rank_much_more_than_another(sizes: list[list[int]], world_size: int) -> None:
    named = {f"p{number}": torch.Size(size) for number, size in enumerate(sizes)}
    owners = assign_owners(named, world_size)
    assert owners.keys() == named.keys()
    loads = [sum(named[n].numel() for n, owner in owners.items() if owner == rank) for rank in range(world_size)]
    assert sum(loads) == sum(shape.numel() for shape in named.values())
    assert max(loads) - min(loads) <= max((shape.numel() for shape in named.values()), default=0)
    assert assign_owners(dict(reversed(named.items())), world_size) == owners, "all ranks must come to the same"


def alone(tensors: dict[str, Tensor], cuts: list[int]) -> dict[str, LocalShard]:
    """One rank that has tensors whole, and "flat" as ranges between `cuts` of itself, one piece of many boxes."""
    whole = tensors["flat"]
    boxes: dict[torch.Size, Tensor] = {}
    for start, stop in pairwise([0, *cuts, whole.numel()]):
        boxes |= LocalShard.of_range(whole.shape, start, whole.flatten()[start:stop].clone()).boxes
    return {n: LocalShard.of(t) for n, t in tensors.items()} | {"flat": LocalShard(whole.shape, whole.dtype, boxes)}


@pytest.fixture
def group() -> object:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group(backend="gloo")
    dist.destroy_process_group()


def made(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tensors = {"flat": torch.randn(3, 5, 7, generator=draw), "scalar": torch.randn((), generator=draw)}
    return {**tensors, "empty": torch.empty(0, 3), "double": torch.randn(3, generator=draw).double()}


def test_what_one_cut_wrote_another_reads(tmp_path: Path, group: object) -> None:
    tensors = made(1)
    write_shards(alone(tensors, [1, 36, 36, 90]), tmp_path, group)  # type: ignore[arg-type]
    for cuts in ([], [50], [7, 8, 104]):
        shards = alone(made(2), cuts)
        read_shards(shards, tmp_path, group)  # type: ignore[arg-type]
        for name, shard in shards.items():
            for offset, box in shard.boxes.items():
                part = tensors[name][tuple(slice(o, o + n) for o, n in zip(offset, box.shape, strict=True))]
                assert torch.equal(box, part), name


def test_stock_dcp_reads_it(tmp_path: Path, group: object) -> None:
    import torch.distributed.checkpoint as dcp

    tensors = made(1)
    write_shards(alone(tensors, [1, 36, 90]), tmp_path, group)  # type: ignore[arg-type]
    read = made(2)
    dcp.load(read, checkpoint_id=tmp_path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_staged_copy_is_what_was_there_and_is_written_by_another_thread(tmp_path: Path, group: object) -> None:
    staging = Staging()
    live = alone(made(1), [10])
    staged = staging.copy(live)
    for _, box in local_tensors(live):
        box.zero_()
    writing = threading.Thread(target=write_shards, args=(staged, tmp_path, group))
    writing.start()
    writing.join()
    read = alone(made(2), [])
    read_shards(read, tmp_path, group)  # type: ignore[arg-type]
    tensors = made(1)
    assert all(torch.equal(box, tensors[name]) for name, box in local_tensors(read))

    again = staging.copy(live)
    assert all(not box.any() for _, box in local_tensors(again))
    pointers = [box.data_ptr() for _, box in local_tensors(staged)]
    assert [box.data_ptr() for _, box in local_tensors(again)] == pointers, "the same memory"
    assert not {box.data_ptr() for _, box in local_tensors(live) if box.numel()} & set(pointers)


def test_a_buffer_that_has_changed_its_shape_or_type_is_copied_as_it_is_now() -> None:
    staging = Staging()
    for value in (torch.arange(3.0), torch.tensor([7.0]), torch.tensor([9], dtype=torch.int64)):
        (staged,) = staging.copy({"queue": LocalShard.of(value)}).values()
        assert (staged.shape, staged.dtype) == (value.shape, value.dtype)
        assert [box.tolist() for box in staged.boxes.values()] == [value.tolist()]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"flat": torch.zeros(3, 5, 7), "other": torch.zeros(2)}, "has no tensor 'other'"),
        ({"flat": torch.zeros(5, 3, 7)}, r"has 'flat' of shape \(3, 5, 7\), this model's is \(5, 3, 7\)"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, group: object, wanted: dict[str, Tensor], words: str) -> None:
    write_shards(alone(made(1), []), tmp_path, group)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=words):
        read_shards({name: LocalShard.of(tensor) for name, tensor in wanted.items()}, tmp_path, group)  # type: ignore[arg-type]
    assert not wanted["flat"].any(), "nothing was read"
