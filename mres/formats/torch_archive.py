"""A file of torch.save, or the part of a file that is one: its structure without its bytes, the bytes by their place."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from mres.formats.folder import CheckpointError
from mres.formats.memory import Buffer, elements, read_at
from mres.formats.open_files import OpenFiles
from mres.formats.tensors import ITEM_BYTES
from mres.formats.torch_pickle import StoredTensor, TorchUnpickler
from mres.io.unpickling import RefusedError

_MAX_PICKLE_BYTES = 1 << 26  # names and shapes: a hundred bytes a tensor
_MAX_LIST_BYTES = 1 << 24  # of a zip's members: 80 bytes a tensor
_PIECE_BYTES = 1 << 22
_END = struct.Struct("<12xI6x")  # of a zip: bytes of that list; before it, where there are more, a record and a locator
_WIDE = 56 + 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: lengths of its name and its extra field


class TorchArchive:
    """What torch.save wrote; tensors in `structure` are descriptions, which are read when they are asked for.

    Args:
        files: open it when it is read.
        length: of the part from `start` on; up to the file's end without.
        unpickler: reads the structure.
        check_sums: compare the CRC of a storage when it is read first; torch itself does not.

    Raises:
        CheckpointError: it is missing, torn, no file of torch.save, or has something in it that is not allowed.
    """

    def __init__(
        self,
        files: OpenFiles,
        path: Path,
        start: int = 0,
        length: int | None = None,
        *,
        unpickler: Callable[[bytes], TorchUnpickler] = TorchUnpickler,
        check_sums: bool = True,
    ) -> None:
        self.path, self._files, self._start, self._length = path, files, start, length or 0
        self._checks_sums, self._checked, self._buffer = check_sums, set[str](), Buffer()
        with self._named("refused"):
            if length is None:
                self._length = path.stat().st_size - start
            self.structure: Any = self._read(unpickler)

    def _read(self, unpickler: Callable[[bytes], TorchUnpickler]) -> Any:
        part = _Part(self._files.descriptor(self.path), self._start, self._length)
        with open_zip(io.BufferedReader(part, 1 << 12)) as archive:
            pickled = next((n for n in archive.namelist() if re.fullmatch("[^/]+/data[.]pkl", n)), None)
            if pickled is None:
                raise ValueError("it is no file of torch.save: no data.pkl")
            self._root = pickled.removesuffix("data.pkl")
            self._members = {m.filename.removeprefix(self._root): m for m in archive.infolist()}
            self._check_order(archive)
            return unpickler(_small(archive, pickled, _MAX_PICKLE_BYTES)).load()

    @contextmanager
    def _named(self, damaged: str) -> Iterator[None]:
        """Whatever fails in it says of which file."""
        try:
            yield
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from None
        except MemoryError:
            raise
        except RefusedError as error:
            raise CheckpointError(f"{self.path} is refused: {printable(str(error))}") from None
        except Exception as error:  # zips and pickles can fail in any way
            reason = printable((str(error).splitlines() or [type(error).__name__])[0])
            torn = "it is torn or no file of torch.save: " if damaged == "refused" else ""
            raise CheckpointError(f"{self.path} is {damaged}: {torn}{reason}") from None

    def _check_order(self, archive: ZipFile) -> None:
        name = self._root + "byteorder"
        if "byteorder" in self._members and (order := _small(archive, name, 16).decode()) != sys.byteorder:
            raise ValueError(f"its numbers are {order}-endian, this machine's are {sys.byteorder}-endian")

    def read_into(self, tensor: StoredTensor, target: memoryview, start: int = 0) -> None:
        """Fills `target` with the tensor's elements from `start` on, as they lie in the file.

        Raises:
            CheckpointError: they are not in the file, or not those that were written.
        """
        with self._named("damaged"):
            self._check(tensor.key)
            self._read_into(tensor, target, start)

    def _read_into(self, tensor: StoredTensor, target: memoryview, start: int = 0) -> None:
        offset, size = self._place(tensor.key)
        first = (tensor.offset + start) * ITEM_BYTES[tensor.dtype]
        if first + target.nbytes > size:
            raise ValueError(f"a tensor of it ends {first + target.nbytes - size} bytes after its storage")
        read_at(self._files.descriptor(self.path), offset + first, target)

    def read_box(self, tensor: StoredTensor, box: NDArray[Any], buffer: Buffer) -> None:
        """Fills `box`, elements to be moved of the tensor's shape that may lie apart, from a tensor that may, too.

        `buffer` holds a part of it at a time.

        Raises:
            CheckpointError: the elements are not in the file, or not those that were written.
        """
        if tensor.numel:
            with self._named("damaged"):
                self._check(tensor.key)
                self._read_box(tensor, box, buffer)

    def _read_box(self, tensor: StoredTensor, box: NDArray[Any], buffer: Buffer) -> None:
        if tensor.is_contiguous and box.flags.c_contiguous:
            self._read_into(tensor, memoryview(box.reshape(-1).view(np.uint8).data))
            return
        # As it lies: the dimension along which the file is gone through comes first.
        order = sorted(range(box.ndim), key=lambda dim: (tensor.shape[dim] == 1, -tensor.strides[dim]))
        shape, strides = ([of[dim] for dim in order] for of in (tensor.shape, tensor.strides))
        lying = box.transpose(order)
        item_bytes = ITEM_BYTES[tensor.dtype]
        inner = sum((size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True)) + 1
        num = max(1, (_PIECE_BYTES // item_bytes - inner) // max(strides[0], 1) + 1)
        for at in range(0, shape[0], num):
            rows = min(num, shape[0] - at)
            extent = (rows - 1) * strides[0] + inner
            piece = buffer.take(extent * item_bytes)
            flat = replace(tensor, offset=tensor.offset + at * strides[0], shape=(extent,), strides=(1,))
            self._read_into(flat, piece)
            found = elements(piece, tensor.dtype, (extent,))
            steps = [stride * item_bytes for stride in strides]
            lying[at : at + rows] = np.lib.stride_tricks.as_strided(found, (rows, *shape[1:]), steps, writeable=False)

    def _check(self, key: str) -> None:
        """Raises: ValueError: the storage's bytes are not those that were written."""
        if key in self._checked or not self._checks_sums:
            return
        offset, size = self._place(key)
        found = 0
        for at in range(0, size, _PIECE_BYTES):
            piece = self._buffer.take(min(_PIECE_BYTES, size - at))
            read_at(self._files.descriptor(self.path), offset + at, piece)
            found = zlib.crc32(piece, found)
        if found != self._members[f"data/{key}"].CRC:
            raise ValueError(f"bytes from {offset} on are not those that were written (CRC)")
        self._checked.add(key)

    def _place(self, key: str) -> tuple[int, int]:
        """Where a storage begins in the file, and its bytes."""
        member = self._members.get(f"data/{key}")
        if member is None:
            raise ValueError(f"it has no data/{key}, which a tensor of it is in")
        if member.compress_type != ZIP_STORED or member.header_offset + _LOCAL_HEADER.size > self._length:
            raise ValueError(f"its data/{key} is compressed or lies outside of it")
        header = bytearray(_LOCAL_HEADER.size)
        read_at(self._files.descriptor(self.path), self._start + member.header_offset, memoryview(header))
        magic, name, extra = _LOCAL_HEADER.unpack(header)
        offset = member.header_offset + _LOCAL_HEADER.size + name + extra
        if magic != b"PK\3\4" or offset + member.file_size > self._length:
            raise ValueError(f"its data/{key} does not lie where it should")
        return self._start + offset, member.file_size


def open_zip(file: IO[bytes]) -> ZipFile:
    """A zip whose list of members is bounded before it is read: an entry of 46 bytes takes half a kB of memory.

    Raises:
        ValueError: it is longer.
        BadZipFile: it is none.
    """
    size = file.seek(0, os.SEEK_END)
    for reach in (_END.size + _WIDE, _END.size + _WIDE + (1 << 16)):  # without a comment behind it, and with one
        file.seek(max(0, size - reach))
        tail = file.read(reach)
        at = tail.rfind(b"PK\5\6", 0, len(tail) - _END.size + 4)
        if at >= 0:
            length = _END.unpack_from(tail, at)[0]
            if at >= _WIDE and tail[at - 20 : at - 16] == b"PK\6\7":
                length = max(0 if length == 0xFFFFFFFF else length, struct.unpack_from("<40xQ", tail, at - _WIDE)[0])
            if length > _MAX_LIST_BYTES:
                raise ValueError(f"its list of members has {length:,} bytes, more than {_MAX_LIST_BYTES:,}")
            break
    return ZipFile(file)


def _small(archive: ZipFile, name: str, most: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != ZIP_STORED or info.file_size > most:
        raise ValueError(f"its {name} is compressed or has {info.file_size:,} bytes, more than {most:,}")
    return archive.read(info)


def printable(text: str) -> str:
    """What may be in a message: no terminal's codes, and not too much."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


class _Part(io.RawIOBase):
    """A part of a file, to read and to seek in."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length = descriptor, start, length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(None, "there is nothing before its beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        got = os.preadv(self._descriptor, [view], self._start + self._at)
        self._at += got
        return got
