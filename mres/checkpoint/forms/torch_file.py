"""A file of torch.save, read piece by piece: its structure without its bytes, and the bytes by their place in the file.

Nothing in it can run: it is loaded with `weights_only=True` and an explicit allow-list, and what is not torch's own comes
as inert stand-ins.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from mres.checkpoint.folder import CheckpointError

_PIECE_BYTES = 1 << 22
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: lengths of its name and its extra field


class Inert:
    """Stands for an object of a class that is known and not needed; `args` is what it was made of."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class TorchFile:
    """What torch.save wrote; `structure` has tensors on the meta device, of which `stored` says where their bytes are.

    Args:
        inert: full names of classes that may be in it beside torch's own.

    Raises:
        CheckpointError: missing, torn, no file of torch.save, or with something in it that is not allowed.
    """

    def __init__(self, path: Path, inert: Sequence[str]) -> None:
        self.path = path
        self._checked: set[int] = set()
        allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Inert, name) for name in inert]
        try:
            with torch.serialization.safe_globals(allowed):
                loaded = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except Exception as error:  # torch raises a dozen types for files that are not its own
            raise CheckpointError(f"{path} is refused: {_reason(error)}") from None
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{path} is refused: it holds a {type(loaded).__name__}, not named values")
        self.structure: dict[str, Any] = loaded

    def stored(self, tensor: Tensor) -> Stored:
        """Where the bytes of a tensor of the structure lie.

        Raises:
            CheckpointError: its elements are not one after another, or not in the file.
        """
        if not tensor.is_contiguous():
            raise CheckpointError(
                f"{self.path} has a tensor of strides {tensor.stride()}, which DeepSpeed does not write"
            )
        storage: Any = tensor.untyped_storage()
        first = int(tensor.storage_offset()) * tensor.itemsize
        start, end = int(storage._checkpoint_offset), first + tensor.numel() * tensor.itemsize
        if end > storage.nbytes() or start + end > self.path.stat().st_size:
            raise CheckpointError(f"{self.path} is damaged: a tensor of it ends after the file")
        return Stored(self, start, first, tensor.numel(), tensor.dtype)

    def read_into(self, target: memoryview, storage: int, offset: int) -> None:
        """Fills `target` with the bytes from `offset` on of the storage that begins at `storage`."""
        self._check_storage(storage)
        with self.path.open("rb", buffering=0) as file:
            file.seek(storage + offset)
            done = 0
            while done < len(target):
                num = file.readinto(target[done:])
                if not num:
                    raise CheckpointError(f"{self.path} became shorter while it was read")
                done += num

    def _check_storage(self, start: int) -> None:
        """When it is read first: torch itself does not look at the CRC."""
        if start in self._checked:
            return
        size, expected = self._members.get(start, (0, 0))
        found = 0
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            while size and (piece := file.read(min(size, _PIECE_BYTES))):
                found = zlib.crc32(piece, found)
                size -= len(piece)
        if found != expected:
            raise CheckpointError(f"{self.path} is damaged: bytes at {start} are not those that were written (CRC)")
        self._checked.add(start)

    @cached_property
    def _members(self) -> dict[int, tuple[int, int]]:
        """Size and CRC of the zip's members, by the place of their bytes."""
        found = {}
        try:
            with ZipFile(self.path) as archive, self.path.open("rb") as file:
                for member in archive.infolist():
                    file.seek(member.header_offset)
                    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                    start = member.header_offset + _LOCAL_HEADER.size + name + extra
                    found[start] = (member.file_size, member.CRC)
        except (BadZipFile, struct.error) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from None
        return found


def _reason(error: Exception) -> str:
    """Torch's advice on how to load it all the same is not ours."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it names {named[1]}, which no such checkpoint contains and which may run code"
    if found := re.search(r"WeightsUnpickler error: (.+)", str(error)):
        return found[1]
    return f"it is torn or no file of torch.save ({(str(error).splitlines() or [type(error).__name__])[0]})"


@dataclass(frozen=True, slots=True)
class Stored:
    """`numel` elements one after another, `offset` bytes into the storage that begins at byte `storage` of a file."""

    file: TorchFile
    storage: int
    offset: int
    numel: int
    dtype: torch.dtype

    def read_into(self, target: Tensor, start: int) -> None:
        """Fills a flat tensor of this dtype with the elements from `start` on."""
        if target.numel():
            view = memoryview(target.view(torch.uint8).numpy().data)
            self.file.read_into(view, self.storage, self.offset + start * self.dtype.itemsize)


class Chain:
    """Stored pieces as if they lay one after another."""

    def __init__(self, pieces: Sequence[Stored]) -> None:
        assert pieces
        self._pieces = pieces
        self._ends = list(accumulate(piece.numel for piece in pieces))
        self.sizes = [piece.numel for piece in pieces]
        self.numel, self.dtype = self._ends[-1], pieces[0].dtype

    def read_into(self, target: Tensor, start: int) -> None:
        """Fills a flat tensor of this dtype with the elements from `start` on."""
        done = 0
        for piece, end in zip(self._pieces, self._ends, strict=True):
            num = min(end, start + target.numel()) - (start + done)
            if num > 0:
                piece.read_into(target.narrow(0, done, num), start + done - (end - piece.numel))
                done += num
        assert done == target.numel(), "sizes were checked when it was opened"
