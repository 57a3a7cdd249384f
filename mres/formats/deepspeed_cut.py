"""How ZeRO cuts trained parameters over ranks, as arithmetic alone; the other direction is `deepspeed_flat.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mres.formats.deepspeed_layout import ParamGroup

_ALIGNMENT = 2  # elements a rank, for NCCL
_SUB_GROUP = 10**9  # elements of a rank's flat tensor after which stage 3 begins another (sub_group_size, its default)


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements `start` … `stop` of a parameter, and zeros after them, come to a rank's flat tensor, at `offset`."""

    rank: int
    start: int
    stop: int
    offset: int
    padding: int = 0


class Cut(Protocol):
    """Of one flat tensor; `sizes`: how long it is on each rank, `filled`: without the padding at its end."""

    names: tuple[str, ...]
    sizes: list[int]
    filled: list[int]

    def fragments(self, name: str) -> list[Fragment]:
        """Where a parameter goes; pieces of a rank come in the order of `names`."""
        ...


class FlatCut:
    """Stages 1 and 2: parameters one after another, padded, cut into a piece a rank."""

    def __init__(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], world_size: int) -> None:
        self.names = tuple(names)
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name in names:
            self._spans[name] = (end, end + math.prod(shapes[name]))
            end += math.prod(shapes[name])
        self._size = math.ceil(end / (_ALIGNMENT * world_size)) * _ALIGNMENT
        self.sizes = [self._size] * world_size
        self.filled = [min(max(end - rank * self._size, 0), self._size) for rank in range(world_size)]

    def fragments(self, name: str) -> list[Fragment]:
        begin, end = self._spans[name]
        found = []
        for rank in range(begin // self._size, math.ceil(end / self._size)):
            first, last = max(begin, rank * self._size), min(end, (rank + 1) * self._size)
            found.append(Fragment(rank, first - begin, last - begin, first - rank * self._size))
        return found


class ShardCut:
    """Stage 3: every parameter cut into a piece a rank, the last ones padded."""

    def __init__(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], world_size: int) -> None:
        self.names = tuple(names)
        self._shapes, self._world_size = shapes, world_size
        self._offsets: dict[str, int] = {}
        end = 0
        for name in names:
            self._offsets[name] = end
            end += shard_size(shapes[name], world_size)
        self.sizes = self.filled = [end] * world_size

    def fragments(self, name: str) -> list[Fragment]:
        numel, size = math.prod(self._shapes[name]), shard_size(self._shapes[name], self._world_size)
        found = []
        for rank in range(self._world_size):
            start, stop = min(rank * size, numel), min((rank + 1) * size, numel)
            found.append(Fragment(rank, start, stop, self._offsets[name], size - (stop - start)))
        return found


def shard_size(shape: tuple[int, ...], world_size: int) -> int:
    """Elements of a rank's piece of a parameter in stage 3."""
    return math.ceil(math.prod(shape) / world_size)


def cuts_of(
    groups: Sequence[ParamGroup], shapes: Mapping[str, tuple[int, ...]], stage: int, world_size: int
) -> list[list[Cut]]:
    """The flat tensors of each group."""
    if stage < 3:
        return [[FlatCut(group.names, shapes, world_size)] for group in groups]
    return [[ShardCut(names, shapes, world_size) for names in _sub_groups(g, shapes, world_size)] for g in groups]


def _sub_groups(group: ParamGroup, shapes: Mapping[str, tuple[int, ...]], world_size: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in group.names:
        names.append(name)
        size += shard_size(shapes[name], world_size)
        if size >= _SUB_GROUP:
            yield names
            names, size = [], 0
    if names:
        yield names
