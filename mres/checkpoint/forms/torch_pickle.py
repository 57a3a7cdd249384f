"""The pickle inside a file of torch.save, read without torch: tensors come as descriptions, nothing of it can run.

It is stricter than torch.load(weights_only=True) with an allow-list: what may be named is listed here, every name stands
for a maker of this module and not for what it means elsewhere, and nothing is imported. The machine is Python's own
written in Python, not the one in C, which takes memory for whatever number a file asks it to remember a value under.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mres.checkpoint.forms.form import ITEM_BYTES

# torch's class of a storage → the type of its elements; what has none of its own is kept as bytes.
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


class RefusedError(ValueError):
    """It wants what is not on the list."""


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


class Inert:
    """Stands for an object of a class that is known and not needed; `args` is what it was made of."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Its fields are not needed either."""


class _Dict(dict[Any, Any]):
    """Any dictionary; keys are plain, as hashing what is nested may take for ever."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int | float | bytes | None):
            raise RefusedError(f"it has a {type(key).__name__} as the key of a dictionary")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Attributes of a dictionary, such as a state_dict's _metadata."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class _StorageClass:
    dtype: str


def load(content: bytes, inert: Sequence[str] = ()) -> Any:
    """What was pickled.

    Args:
        inert: full names of classes that may be in it beside torch's own.

    Raises:
        RefusedError: it wants something else.
        Exception: it is damaged; a pickle can fail in any way.
    """
    return _Unpickler(io.BytesIO(content), inert).load()


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor of it has no storage or no shape")
    tensor = StoredTensor(storage.key, dtype, offset, tuple(shape), tuple(strides))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if tensor.numel and (last + 1) * ITEM_BYTES[dtype] > storage.numel * ITEM_BYTES[storage.dtype]:
        raise ValueError("a tensor of it lies outside its storage")
    return tensor


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    return _rebuild(storage, offset, shape, strides, storage.dtype)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    return _rebuild(storage, offset, shape, strides, dtype)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _from_type(make: Any, _: Any, args: Any, __: Any) -> Any:
    """A tensor with attributes of its own, which are not needed."""
    if make not in (_tensor, _tensor_v3, _parameter):
        raise RefusedError("it makes a tensor in an unknown way")
    return make(*args)


def _encoded(text: str, _: str) -> bytes:
    """Protocol 2 has bytes as text in latin-1."""
    return text.encode("latin-1")


def _size(items: Sequence[Any] = ()) -> tuple[Any, ...]:
    return tuple(items)


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "torch.device": Inert,
    "torch.Tensor": Inert,
    "torch.nn.parameter.Parameter": Inert,
    "torch.serialization._get_layout": Inert,
    "collections.OrderedDict": _Dict,
    "_codecs.encode": _encoded,
    **{f"torch.{name}": _StorageClass(dtype) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": _StorageClass("uint8"),
    **{f"torch.{dtype}": dtype for dtype in ITEM_BYTES},
}
_MAKERS = (_tensor, _tensor_v3, _parameter, _from_type, _size, _encoded)
# None, numbers, texts, bytes, lists, tuples, dictionaries; names, calls, objects and their fields; storages; the memo.
_OPCODES = b"\x80\x95.NIJKML\x88\x89\x8a\x8bFGXVUTC\x8c\x8d\x8eB]ale)t\x85\x86\x87}us(0" + b"12qrpghj\x94c\x93R\x81bQ"
_PythonUnpickler: Any = vars(pickle)["_Unpickler"]


class _Unpickler(_PythonUnpickler):
    dispatch: ClassVar[dict[int, Any]] = {
        code: action for code, action in _PythonUnpickler.dispatch.items() if code in _OPCODES
    }

    def __init__(self, file: io.BytesIO, inert: Sequence[str]) -> None:
        super().__init__(file, encoding="latin-1")
        self._inert = frozenset(inert)

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            if isinstance(code := error.args[0], int):
                raise RefusedError(
                    f"it has the opcode {bytes([code % 256])!r}, which torch.save does not write"
                ) from None
            raise

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _KNOWN:
            return _KNOWN[full]
        if full in self._inert:
            return Inert
        raise RefusedError(f"it names {full}, which no such checkpoint contains and which may run code")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _StorageClass) or type(numel) is not int or numel < 0:
            raise ValueError("a storage of it is none")
        return _Storage(str(key), storage.dtype, numel)

    def _load_empty_dictionary(self) -> None:
        self.append(_Dict())

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        make: Callable[..., Any] = self.stack[-1]
        if make not in _MAKERS and make is not Inert and make is not _Dict:
            raise RefusedError(f"it calls a {type(make).__name__}")
        self.stack[-1] = make(*args)

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        if self.stack[-1] is not Inert:
            raise RefusedError("it makes an object of another class than those that are known")
        self.stack[-1] = Inert(*args)

    def _load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Inert | _Dict):
            raise RefusedError(f"it sets fields of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch |= {
        pickle.EMPTY_DICT[0]: _load_empty_dictionary,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_newobj,
        pickle.BUILD[0]: _load_build,
    }
