"""Flat tensors that lie in several files of torch.save as if in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from numpy.typing import NDArray

from mres.formats.folder import CheckpointError
from mres.formats.memory import Buffer
from mres.formats.tensors import ITEM_BYTES
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_pickle import StoredTensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: TorchArchive
    tensor: StoredTensor

    def read_into(self, target: memoryview, start: int) -> None:
        """Fills `target` with the elements from `start` on."""
        if target.nbytes:
            self.file.read_into(self.tensor, target, start)

    def read_box(self, box: NDArray[Any], buffer: Buffer) -> None:
        """Fills `box`, elements to be moved of its shape."""
        self.file.read_box(self.tensor, box, buffer)


class Chain:
    """Stored tensors of one type as if they lay one after another."""

    def __init__(self, pieces: Sequence[Stored]) -> None:
        """Raises: CheckpointError: the elements of a piece do not lie one after another, or are of another type."""
        assert pieces
        for piece in pieces:
            if not piece.tensor.is_contiguous or piece.tensor.dtype != pieces[0].tensor.dtype:
                raise CheckpointError(
                    f"{piece.file.path} has a tensor of strides {piece.tensor.strides} and type {piece.tensor.dtype} where "
                    "DeepSpeed writes flat ones of one type"
                )
        self._pieces = pieces
        self.sizes = [piece.tensor.numel for piece in pieces]
        self._ends = list(accumulate(self.sizes))
        self.numel, self.dtype = self._ends[-1], pieces[0].tensor.dtype

    def read_into(self, target: memoryview, start: int) -> None:
        """Fills `target` with the elements from `start` on."""
        width = ITEM_BYTES[self.dtype]
        done, wanted = 0, target.nbytes // width
        for piece, size, end in zip(self._pieces, self.sizes, self._ends, strict=True):
            num = min(end, start + wanted) - (start + done)
            if num > 0:
                piece.read_into(target[done * width : (done + num) * width], start + done - (end - size))
                done += num
        assert done == wanted, "sizes were checked when it was opened"
