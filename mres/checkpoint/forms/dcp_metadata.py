"""DCP's index, `.metadata`, without torch.distributed (which alone takes 50 MB): a pickle of nothing but plain records."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mres.checkpoint.dcp_index import CheckpointError, check_index
from mres.checkpoint.forms.form import Spec
from mres.checkpoint.forms.workspace import Item


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, and the part of a file that holds it as torch.save wrote it."""

    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class _Record:
    """Stands for any of DCP's dataclasses: its fields, as they were pickled."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.fields = state

    def __getstate__(self) -> Any:
        return self.fields


class _Contiguous(_Record):
    """Stands for a member of an enum, which is made from its value."""

    def __reduce__(self) -> Any:
        return type(self), (0,)


class _Records(pickle.Unpickler):
    """Builds records, sizes and types; `check_index` has seen that nothing else is named."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        found: Any = getattr(torch, name) if module == "torch" else _Record
        return found


def read_index(folder: Path) -> dict[str, tuple[Spec, list[Chunk]]]:
    """Every tensor of a DCP checkpoint and where its boxes lie.

    Raises:
        CheckpointError: there is no index, it may run code, or it does not say where a tensor lies.
    """
    path = folder / ".metadata"
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.distcp")}
    check_index(path, sizes)
    with io.BytesIO(path.read_bytes()) as file:
        fields = _Records(file).load().fields
    places = {(key.fields["fqn"], key.fields["offset"]): place.fields for key, place in fields["storage_data"].items()}
    try:
        return {name: _tensor(name, entry.fields, places) for name, entry in fields["state_dict_metadata"].items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged: it does not say where all tensors lie ({error!r})") from None


def _tensor(name: str, fields: Mapping[str, Any], places: Mapping[Any, Mapping[str, Any]]) -> tuple[Spec, list[Chunk]]:
    spec = Spec(torch.Size(fields["size"]), fields["properties"].fields[0])
    chunks = []
    for chunk in (chunk.fields for chunk in fields["chunks"]):
        place = places[name, chunk["offsets"]]
        if place.get("transform_descriptors"):
            raise CheckpointError(
                f"{name} was written through an extension of DCP (compressed), which is not read here"
            )
        offset, sizes = tuple(chunk["offsets"]), tuple(chunk["sizes"])
        chunks.append(Chunk(offset, sizes, place["relative_path"], place["offset"], place["length"]))
    return spec, chunks


# The pickler in C would import what a class stands for.
_PythonPickler: Any = vars(pickle)["_Pickler"]


class _Pickler(_PythonPickler):
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and issubclass(obj, _Record):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _dcp_class(name: str, module: str = "metadata", base: type[_Record] = _Record) -> type[_Record]:
    """Stands for a class of DCP in what is pickled."""
    return type(name, (base,), {"__module__": f"torch.distributed.checkpoint.{module}"})


_METADATA, _INDEX, _TENSOR, _CHUNK, _PROPERTIES, _META = map(
    _dcp_class,
    ("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "StorageMeta"),
)
_PLACE = _dcp_class("_StorageInfo", "filesystem")
_MEMORY_FORMAT = _dcp_class("_MEM_FORMAT_ENCODING", base=_Contiguous)


def _record(cls: type[_Record], state: Any) -> _Record:
    record = cls()
    record.fields = state
    return record


def index_of(specs: Mapping[str, Spec], aliases: Mapping[str, str], items: Sequence[Item]) -> bytes:
    """The index of whole tensors, each an item of a file; an alias is a name for what lies there already."""
    by_name = {item.key: item for item in items}
    held = {**{name: name for name in specs}, **aliases}
    tensors, places = {}, {}
    for name, holder in held.items():
        spec, item = specs[holder], by_name[holder]
        start = torch.Size([0] * len(spec.shape))
        chunk = _record(_CHUNK, {"offsets": start, "sizes": spec.shape})
        tensors[name] = _record(_TENSOR, {"properties": _properties(spec.dtype), "size": spec.shape, "chunks": [chunk]})
        index = _record(_INDEX, {"fqn": name, "offset": start, "index": 0})
        places[index] = _record(_PLACE, {"relative_path": item.file, "offset": item.offset, "length": item.length})
    fields = {
        "state_dict_metadata": tensors,
        "planner_data": {name: (name,) for name in held},
        "storage_data": places,
        "storage_meta": _record(_META, {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}),
        "version": "1.0.0",
    }
    with io.BytesIO() as file:
        _Pickler(file, protocol=2).dump(_record(_METADATA, fields))
        return file.getvalue()


def _properties(dtype: torch.dtype) -> _Record:
    return _record(_PROPERTIES, (dtype, torch.strided, False, _MEMORY_FORMAT(), False))
