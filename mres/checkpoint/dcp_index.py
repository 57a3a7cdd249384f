"""DCP's own index of tensors, `.metadata`: a pickle, gone through name by name before anybody loads it. No torch here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mres.errors import UserError

DCP_METADATA = ".metadata"
# A box of a tensor takes some hundred bytes of it.
_MAX_BYTES = 1 << 30
# All that the metadata of tensors consists of. Anything else in it could run when PyTorch unpickles it; of an object
# that is no tensor (BytesStorageMetadata), the object itself would be unpickled, freely.
_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"}
    | {"int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}


class CheckpointError(UserError):
    """A checkpoint that cannot be used or written; the message says which file and why."""


class _Inert:
    """Stands for anything that is allowed, and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _NamesOnly(pickle.Unpickler):
    """Goes through a pickle without importing or calling anything that it names; keeps where tensors lie."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.places: list[Any] = []
        places = self.places

        class Place(_Inert):
            def __setstate__(self, state: Any) -> None:
                places.append(state)

        self._place = Place

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name not in _NAMES.get(module, ()):
            _refuse(f"it names {module}.{name}, which no checkpoint of mres contains and which may run code")
        return self._place if name == "_StorageInfo" else _Inert


def _refuse(why: str) -> NoReturn:
    raise CheckpointError(why)


def check_index(path: Path, sizes: Mapping[str, int] | None = None) -> None:
    """Nothing in the index may be able to run, or lie anywhere but in the files beside it.

    Args:
        path: the `.metadata`.
        sizes: bytes of the files that it may speak of; without, no file outside its folder.

    Raises:
        CheckpointError: it names something else than metadata of tensors, or another place, or is no pickle.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            _refuse(f"it has {path.stat().st_size:,} bytes, no index of tensors has more than {_MAX_BYTES:,}")
        with path.open("rb") as file:
            found = _NamesOnly(file)
            found.load()
        for place in found.places:
            _check_place(place, sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}; take the checkpoint again from where it came") from None
    except Exception as error:  # a pickle can fail in any way
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _check_place(place: Any, sizes: Mapping[str, int] | None) -> None:
    name, offset, length = (place[key] for key in ("relative_path", "offset", "length"))
    if not isinstance(name, str) or Path(name).name != name:
        _refuse(f"it has a tensor in '{name}', outside of the checkpoint's folder")
    if sizes is None:
        return
    if name not in sizes:
        _refuse(f"it has a tensor in '{name}', which the manifest does not list")
    if not 0 <= offset <= offset + length <= sizes[name]:
        _refuse(f"it has a tensor at bytes {offset} to {offset + length} of '{name}', which has {sizes[name]}")
