"""Tensors out of a TorchScript archive (OpenAI's CLIP is one), without running anything of it.

The archive is a zip file: code, constants, `data.pkl` (the modules' attributes as a pickle) and `data/0`, `data/1` …
(the bytes of the tensors). The pickle is read with tensors as descriptions and modules as mere attributes; it may name
nothing else. The code is not looked at.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from mres.checkpoint.folder import CheckpointError

_MAX_PICKLE = 1 << 26  # OpenAI's largest has less than one MiB
_MAX_DEPTH = 64
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in the archive: where it lies, in elements of its storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def fits(self) -> bool:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
            return False
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return 0 in self.shape or last < self.storage.length


class _Module:
    """A module's attributes; its class and its methods are code, and stay where they are."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class TorchScriptArchive:
    """The tensors of the archive's modules, by the names that the library's state_dict has.

    Raises:
        CheckpointError: damaged, or its pickle wants something else than modules and tensors.
    """

    form = "TorchScript archive"
    others: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = ZipFile(path)
        self._root = next(name for name in self._file.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        self._tensors = dict(_tensors("", self._modules(), set()))
        for name, tensor in self._tensors.items():
            if not tensor.fits:
                self._damaged(f"tensor '{name}' lies outside its storage")
        self.shapes = {name: torch.Size(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, as it was stored. Raises: CheckpointError: its bytes are damaged or not there."""
        stored = self._tensors[name]
        storage = stored.storage
        record = f"{self._root}data/{storage.key}"
        try:
            info = self._file.getinfo(record)
            if info.compress_type != ZIP_STORED or info.file_size != storage.length * storage.dtype.itemsize:
                self._damaged(f"'{record}' has not the size of its tensor")
            content = bytearray(self._file.read(info))  # zipfile checks its CRC
        except (KeyError, BadZipFile, OSError, EOFError) as error:
            self._damaged(str(error))
        return torch.frombuffer(content, dtype=storage.dtype).as_strided(stored.shape, stored.stride, stored.offset)

    def _modules(self) -> Any:
        try:
            info = self._file.getinfo(f"{self._root}data.pkl")
            if info.compress_type != ZIP_STORED or info.file_size > _MAX_PICKLE:
                self._damaged(f"data.pkl has {info.file_size} bytes, up to {_MAX_PICKLE} are read")
            if (order := f"{self._root}byteorder") in self._file.namelist() and self._file.read(order) != b"little":
                self._damaged("its bytes are not in little-endian order")
            return _Unpickler(BytesIO(self._file.read(info))).load()
        except CheckpointError:
            raise
        except Exception as error:  # a broken pickle raises a dozen types
            self._damaged(str(error) or type(error).__name__)

    def _damaged(self, what: str) -> NoReturn:
        raise CheckpointError(f"'{self._path}' cannot be read as a TorchScript archive of tensors only: {what}")


def is_torchscript(names: list[str]) -> bool:
    """Of the names in a zip file; what torch.save writes has no constants.pkl."""
    return any(name.endswith("/constants.pkl") for name in names) and any(name.endswith("/data.pkl") for name in names)


def _tensors(prefix: str, value: Any, seen: set[int]) -> Iterator[tuple[str, _Stored]]:
    if not isinstance(value, _Module) or id(value) in seen or prefix.count(".") > _MAX_DEPTH:
        return
    seen.add(id(value))
    for name, attribute in getattr(value, "attributes", {}).items():
        if isinstance(attribute, _Stored):
            yield f"{prefix}{name}", attribute
        else:
            yield from _tensors(f"{prefix}{name}.", attribute, seen)


class _Unpickler(pickle.Unpickler):
    """Lets through what TorchScript itself writes, each as something that cannot run."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return _nothing  # lists of numbers and the like: settings of the code
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no part of a model's tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a tensor without a storage: {kind!r}")
        return _Storage(str(key), dtype, int(length))


def _stored(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Stored:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Stored(storage, offset, tuple(shape), tuple(stride))


def _nothing(*_: Any) -> None:
    return None
