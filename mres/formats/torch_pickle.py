"""The pickle inside a file of torch.save, read without torch: tensors come as descriptions of where they lie."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mres.formats.tensors import ITEM_BYTES
from mres.io.object_unpickling import Maker, ObjectUnpickler
from mres.io.unpickling import Inert, RefusedError

# torch's class of a storage → the type of its elements; what has none of its own is kept as bytes.
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
_MOST_DIMENSIONS = 64
# What is text in the pickle and becomes bytes: states of random generators, a few kB.
_MOST_ENCODED = 1 << 24
# Items of all OrderedDicts that are made of lists, which may be named again and again.
_MOST_ORDERED = 1 << 20
# A tensor whose elements share memory may have so many of them, as one that was expanded has.
_MOST_OVERLAPPING = 1 << 24
_MOST_NAME = 1 << 12


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Elements `offset` … of the storage `key`, in elements of `dtype`."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie one after another in their order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return not self.numel
            expected *= size
        return True

    @property
    def extent(self) -> int:
        """Elements from its first one to its last."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return last + 1 if self.numel else 0


class TorchUnpickler(ObjectUnpickler):
    """Tensors as torch.save and torch.jit.save name them; subclasses name more.

    Args:
        inert: full names of classes that may be in it beside torch's own.
    """

    # Names and shapes: a hundred bytes and some 40 opcodes a tensor.
    most_opcodes, most_containers = 1 << 22, 1 << 20
    most_bytes = 1 << 26

    def __init__(self, content: bytes | mmap.mmap, inert: Sequence[str] = (), at: int = 0) -> None:
        super().__init__(content, at)
        self.storages: dict[str, _Storage] = {}
        self._inert = frozenset(inert)
        self._num_encoded = self._num_ordered = 0

    def named(self, full: str) -> Any:
        if full == "_codecs.encode":
            return Maker(self._encode)
        if full == "collections.OrderedDict":
            return Maker(self._ordered)
        return Inert if full in self._inert else _KNOWN.get(full)

    def _encode(self, text: str, _: str) -> bytes:
        """Protocol 2 has bytes as text in latin-1; a text that is there once can be named again and again."""
        self._num_encoded += len(text)
        if self._num_encoded > _MOST_ENCODED:
            raise RefusedError(f"it has more than {_MOST_ENCODED:,} bytes as text")
        return text.encode("latin-1")

    def _ordered(self, pairs: Sequence[Any] = ()) -> dict[str, Any]:
        """Its items come one after another, or, from Python 2, as pairs."""
        self._num_ordered += len(pairs)
        if self._num_ordered > _MOST_ORDERED:
            raise RefusedError(f"it has more than {_MOST_ORDERED:,} items of OrderedDicts")
        if not all(type(name) is str for name, _ in pairs):
            raise ValueError("an OrderedDict of it has other keys than texts")
        return self.container(dict(pairs))

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage, _StorageClass) or not _is_size(numel):
            raise ValueError("a storage of it is none")
        if type(key) is not str or len(key) > _MOST_NAME:
            raise ValueError("a storage of it has no name")
        if any(view):
            raise RefusedError("a storage of it is a part of another, as files of torch before 0.4 have it")
        return self.storages.setdefault(key, _Storage(key, storage.dtype, numel))


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class _StorageClass:
    dtype: str


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str, metadata: Any) -> StoredTensor:
    numbers = (offset, *_size(shape), *_size(strides))
    if not isinstance(storage, _Storage) or not all(map(_is_size, numbers)) or len(shape) != len(strides):
        raise ValueError("a tensor of it has no storage or no shape")
    if metadata:
        raise RefusedError("it has a tensor that is conjugated or negated when it is read; save tensor.resolve_conj()")
    tensor = StoredTensor(storage.key, dtype, offset, tuple(shape), tuple(strides))
    if (offset + tensor.extent) * ITEM_BYTES[dtype] > storage.numel * ITEM_BYTES[storage.dtype]:
        raise ValueError("a tensor of it lies outside its storage")
    if tensor.numel > max(storage.numel * ITEM_BYTES[storage.dtype], _MOST_OVERLAPPING):
        raise RefusedError(f"it has a tensor of {tensor.numel:,} elements that share the memory of {storage.numel:,}")
    return tensor


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _: Any = 0, __: Any = 0, metadata: Any = 0) -> Any:
    return _rebuild(storage, offset, shape, strides, storage.dtype, metadata)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, metadata: Any = None
) -> Any:
    return _rebuild(storage, offset, shape, strides, dtype, metadata)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _from_type(made: Any, _: Any, args: Any, __: Any) -> Any:
    """A tensor with attributes of its own, which are not needed."""
    if made not in _TENSORS:
        raise RefusedError("it makes a tensor in an unknown way")
    return made.make(*args)


def _size(items: Sequence[Any] = ()) -> tuple[Any, ...]:
    if len(items) > _MOST_DIMENSIONS:
        raise ValueError(f"a size of {len(items)} dimensions")
    return tuple(items)


def _is_size(number: Any) -> bool:
    """Below 2^63, as all of torch's are; products of 64 of larger ones may take for ever."""
    return type(number) is int and 0 <= number < 1 << 63


SIZE = Maker(_size)
_TENSORS = (Maker(_tensor), Maker(_tensor_v3), Maker(_parameter))
_COLLECTIONS = ("set", "frozenset", "bytearray", "complex")
_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _TENSORS[0],
    "torch._utils._rebuild_tensor_v2": _TENSORS[0],
    "torch._utils._rebuild_tensor_v3": _TENSORS[1],
    "torch._utils._rebuild_parameter": _TENSORS[2],
    "torch._utils._rebuild_parameter_with_state": _TENSORS[2],
    "torch._utils._rebuild_meta_tensor_no_storage": Inert,
    "torch._tensor._rebuild_from_type_v2": Maker(_from_type),
    "torch.Size": SIZE,
    "torch.device": Inert,
    "torch.Tensor": Inert,
    "torch.nn.parameter.Parameter": Inert,
    "torch.serialization._get_layout": Inert,
    "collections.Counter": Inert,
    **{f"{module}.{name}": Inert for module in ("builtins", "__builtin__") for name in _COLLECTIONS},
    **{f"torch.{name}": _StorageClass(dtype) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": _StorageClass("uint8"),
    **{f"torch.{dtype}": dtype for dtype in ITEM_BYTES},
}
