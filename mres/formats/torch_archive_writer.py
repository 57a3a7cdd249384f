"""A file of torch.save, written piece by piece: no tensor of it need ever be in memory as a whole."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mres.formats.pickling import Name, Pickler
from mres.formats.tensors import ITEM_BYTES, Spec
from mres.formats.torch_pickle import STORAGES
from mres.formats.zip_appender import Sink, ZipAppender, ZipState

_ALIGNMENT = 64  # bytes, as torch.save places storages, so that a mapped file can be used as it is
_ZEROS = bytes(1 << 16)
_CLASSES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    spec: Spec


class Written:
    """A tensor in the file; it stands for the tensor in what `finish` gets."""

    def __init__(self, key: str, spec: Spec) -> None:
        self._storage = _Storage(key, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        shape, typed = self._storage.spec.shape, self._storage.spec.dtype in _CLASSES
        args: tuple[Any, ...] = (self._storage, 0, shape, _strides(shape), False, OrderedDict())
        if typed:
            return Name("torch._utils._rebuild_tensor_v2"), args
        return Name("torch._utils._rebuild_tensor_v3"), (*args, Name(f"torch.{self._storage.spec.dtype}"))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor whose elements lie one after another, as torch has them."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return tuple(strides)


class TorchArchiveWriter:
    """Tensors are begun one after another, each `append`ed to until it is full; then `finish`.

    One that was broken off is gone on with by the same calls in the same order: `begin` writes nothing of what is there,
    and `num_there` says how much of a tensor need not be appended.

    Args:
        state: what `state` was when it was broken off; the sink ends where it ended then.
    """

    def __init__(self, sink: Sink, folder: str = "archive", state: Mapping[str, Any] | None = None) -> None:
        self._there = ZipState() if state is None else ZipState.of(state)
        self._zip = ZipAppender(sink, _ALIGNMENT, self._there, 0 if state is not None else None)
        self._folder = folder
        self._count = 0

    @property
    def state(self) -> dict[str, Any]:
        """Plain values, from which it can be gone on with."""
        return self._zip.state.plain()

    def begin(self, spec: Spec) -> Written:
        """Makes room for a tensor, whose elements `append` brings next."""
        assert not self._count or not self._left, "the tensor before is not complete"
        written = Written(str(self._count), spec)
        self._count += 1
        if self._count > len(self._zip.state.members):
            self._zip.open(f"{self._folder}/data/{self._count - 1}", spec.num_bytes)
        return written

    @property
    def _left(self) -> int:
        return self._zip.state.members[self._count - 1].left

    @property
    def num_there(self) -> int:
        """Bytes of the tensor that was begun last."""
        return self._zip.state.members[self._count - 1].size - self._left

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be appended to the tensor that was begun last."""
        return not self._left

    def append(self, elements: memoryview) -> None:
        """The next elements of the tensor that was begun last."""
        self._zip.write(elements)

    def fill(self, num_bytes: int | None = None) -> None:
        """Zeros, so many or up to the end of what was begun."""
        left = self._left if num_bytes is None else num_bytes
        while left:
            self._zip.write(_ZEROS[:left])
            left -= min(left, len(_ZEROS))

    def finish(self, structure: Any) -> None:
        """Writes what names the tensors."""
        assert not self._count or not self._left, "the last tensor is not complete"
        if self._zip.state.is_closed:
            return
        buffer = io.BytesIO()
        _Pickler(buffer).dump(structure)
        for name, content in (
            ("data.pkl", buffer.getvalue()),
            ("byteorder", sys.byteorder.encode()),
            ("version", b"3\n"),
        ):
            self._zip.open(f"{self._folder}/{name}", len(content))
            self._zip.write(content)
        self._zip.close()


class _Pickler(Pickler):
    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        spec = obj.spec
        if spec.dtype in _CLASSES:
            return "storage", Name(f"torch.{_CLASSES[spec.dtype]}"), obj.key, "cpu", spec.numel
        return "storage", Name("torch.storage.UntypedStorage"), obj.key, "cpu", spec.numel * ITEM_BYTES[spec.dtype]
