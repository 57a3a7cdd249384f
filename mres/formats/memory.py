"""Memory for tensors on their way from file to file, taken once: a fresh page costs more than what is read into it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mres.formats.tensors import ITEM_BYTES, TensorSource

_PIECE_BYTES = 1 << 24
_COMPARED_BYTES = 1 << 20  # what a processor's cache holds of both sides


class Buffer:
    """A piece of memory that grows to what is asked of it; what was taken before is overwritten."""

    def __init__(self, num_bytes: int = 0) -> None:
        self._memory = _new(num_bytes)

    def take(self, num_bytes: int) -> memoryview:
        if num_bytes > self._memory.nbytes:
            self._memory = _new(0)  # lets go of it first
            self._memory = _new(num_bytes)
        return self._memory[:num_bytes]


def _new(num_bytes: int) -> memoryview:
    return memoryview(np.empty(num_bytes, np.uint8).data)  # not filled: pages come when they are used


class Reader:
    """Reads a source's tensors into one piece of memory: each is there until the next is read."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._buffer = Buffer(max((spec.num_bytes for spec in source.specs.values()), default=0))

    def read(self, name: str) -> memoryview:
        target = self._buffer.take(self._source.specs[name].num_bytes)
        self._source.read_into(name, target)
        return target


def read_at(descriptor: int, offset: int, target: memoryview) -> None:
    """Fills `target` with a file's bytes from `offset` on; read, not mapped: mapped pages count as this process's.

    Raises:
        OSError: the file ends before.
    """
    done = 0
    while done < target.nbytes:
        got = os.preadv(descriptor, [target[done : done + _PIECE_BYTES]], offset + done)
        if not got:
            raise OSError(None, f"it ends at byte {offset + done}")
        done += got


def elements(memory: memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The memory as elements to be moved, whatever they mean."""
    return np.frombuffer(memory, f"V{ITEM_BYTES[dtype]}").reshape(shape)


def same_bytes(one: memoryview, other: memoryview) -> bool:
    """Whether all bytes are equal: of floats, NaNs and the signs of zeros count."""
    if one.nbytes != other.nbytes:
        return False
    pieces = range(0, one.nbytes, _COMPARED_BYTES)
    return all(_same(one[at : at + _COMPARED_BYTES], other[at : at + _COMPARED_BYTES]) for at in pieces)


def _same(one: memoryview, other: memoryview) -> bool:
    width = np.uint64 if one.nbytes % 8 == 0 else np.uint8
    return bool(np.array_equal(np.frombuffer(one, width), np.frombuffer(other, width)))
