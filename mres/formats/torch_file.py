"""Files of torch.save by their path, and flat tensors in them that lie in several files as if in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mres.formats.folder import CheckpointError
from mres.formats.memory import Buffer
from mres.formats.open_files import OpenFiles
from mres.formats.tensors import ITEM_BYTES
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_pickle import StoredTensor, TorchUnpickler


class TorchFile:
    """What torch.save wrote; `structure` has descriptions of tensors, which `stored` makes readable.

    Args:
        files: open it when it is read.
        inert: full names of classes that may be in it beside torch's own.

    Raises:
        CheckpointError: missing, torn, no file of torch.save, or with something in it that is not allowed.
    """

    def __init__(self, files: OpenFiles, path: Path, inert: Sequence[str] = ()) -> None:
        self.path = path
        self._buffer = Buffer()
        try:
            self._archive = TorchArchive(files, path, read=lambda content: TorchUnpickler(content, inert).load())
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is refused: {error}") from None
        if not isinstance(self._archive.structure, dict):
            kind = type(self._archive.structure).__name__
            raise CheckpointError(f"{path} is refused: it holds a {kind}, not named values")
        self.structure: dict[str, Any] = self._archive.structure

    def stored(self, tensor: StoredTensor) -> Stored:
        """A tensor of the structure."""
        return Stored(self, tensor)

    def read_into(self, tensor: StoredTensor, target: memoryview, start: int) -> None:
        """Fills `target` with elements from `start` on, which lie one after another."""
        self._read(tensor, lambda: self._archive.read_into(tensor, target, start))

    def read_box(self, tensor: StoredTensor, box: NDArray[Any], buffer: Buffer) -> None:
        """Fills `box`, elements to be moved of the tensor's shape."""
        self._read(tensor, lambda: self._archive.read_box(tensor, box, buffer))

    def _read(self, tensor: StoredTensor, read: Callable[[], None]) -> None:
        """Raises: CheckpointError: its bytes are not those that were written, or not there."""
        try:
            self._archive.check(tensor, self._buffer)
            read()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from None


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: TorchFile
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
