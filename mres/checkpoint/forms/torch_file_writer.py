"""A file of torch.save, written piece by piece: no tensor of it need ever be in memory as a whole."""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes, as torch.save places storages, so that a mapped file can be used as it is
_HEADER_BYTES = 30 + 20  # of a member: fixed part and the sizes in 64 bits
_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


class Foreign:
    """A class of another library by its full name, written without importing it; `args` and `fields` make an object."""

    def __init__(self, name: str, args: tuple[Any, ...] = (), fields: dict[str, Any] | None = None) -> None:
        self.name, self.args, self.fields = name, args, fields

    def __reduce__(self) -> tuple[Any, ...]:
        made = (_Name(self.name), self.args)
        return made if self.fields is None else (*made, self.fields)


class _Name:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> None: ...  # what is pickled as a maker of objects must look like one

    def __reduce__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


class Written:
    """A tensor in the file; it stands for the tensor in what `finish` gets."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self._storage, self._shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self._shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (self._storage, 0, self._shape, strides, False, OrderedDict())


class TorchFileWriter:
    """Used as a context: tensors are begun one after another, each `append`ed to until it is full, then `finish`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._zip = ZipFile(self._file, "w", ZIP_STORED)
        self._folder = path.stem
        self._count = 0
        self._member: Any = None
        self._left = 0

    def __enter__(self) -> TorchFileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:  # nothing to save, and what went wrong may go wrong again
            with suppress(Exception):
                if self._member is not None:
                    self._member.close()
                self._zip.close()
        self._file.close()

    def begin(self, shape: tuple[int, ...], dtype: torch.dtype) -> Written:
        """Makes room for a tensor, whose elements `append` brings next."""
        assert not self._left, "the tensor before is not complete"
        storage = _Storage(str(self._count), dtype, torch.Size(shape).numel())
        self._count += 1
        self._left = storage.numel * dtype.itemsize
        self._member = self._zip.open(self._aligned(f"data/{storage.key}"), "w", force_zip64=True)
        self._close_if_full()
        return Written(storage, tuple(shape))

    def append(self, elements: Tensor) -> None:
        """The next elements, of the dtype that was begun."""
        if not elements.numel():
            return
        flat = elements.contiguous().view(-1)
        self._left -= flat.nbytes
        assert self._left >= 0, "more than there is room for"
        self._member.write(memoryview(flat.view(torch.uint8).numpy().data))
        self._close_if_full()

    def fill(self) -> None:
        """Zeros up to the end of what was begun: the little that alignment asks for."""
        if self._left:
            self.append(torch.zeros(self._left, dtype=torch.uint8))

    def put(self, tensor: Tensor) -> Written:
        """A whole tensor at once."""
        written = self.begin(tuple(tensor.shape), tensor.dtype)
        self.append(tensor)
        return written

    def finish(self, structure: dict[str, Any]) -> None:
        """Writes what names the tensors, and waits until all is on the disk."""
        assert not self._left, "the last tensor is not complete"
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(structure)
        for name, content in (
            ("data.pkl", buffer.getvalue()),
            ("byteorder", sys.byteorder.encode()),
            ("version", b"3\n"),
        ):
            self._zip.writestr(ZipInfo(f"{self._folder}/{name}"), content)
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _aligned(self, name: str) -> ZipInfo:
        member = ZipInfo(f"{self._folder}/{name}")
        begins = self._file.tell() + _HEADER_BYTES + len(member.filename.encode()) + 4
        padding = -begins % _ALIGNMENT
        member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        return member

    def _close_if_full(self) -> None:
        if not self._left:
            self._member.close()
            self._member = None


# The pickler in C would import what a name stands for.
_PythonPickler: Any = vars(pickle)["_Pickler"]


class _Pickler(_PythonPickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, _Storage):
            return "storage", _STORAGES[obj.dtype], obj.key, "cpu", obj.numel
        return None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if not isinstance(obj, _Name):
            super().save_global(obj, name)
            return
        module, _, attribute = obj.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())
        self.memoize(obj)
