"""DCP's index, `.metadata`, without torch.distributed (which alone takes 50 MB): a pickle of nothing but plain records."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.checkpoint.dcp_index import CheckpointError, check_index
from mres.checkpoint.forms.form import ITEM_BYTES, Spec
from mres.checkpoint.forms.pickling import Made, Name, Pickler, Record, record_class
from mres.checkpoint.forms.workspace import Item


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, and the part of a file that holds it as torch.save wrote it."""

    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.sizes, strict=True))


class _Found:
    """Stands for any of DCP's dataclasses: its fields, as they were pickled."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.fields = state


def _size(items: Sequence[int] = ()) -> tuple[int, ...]:
    return tuple(items)


class _Records(pickle.Unpickler):
    """Builds records, sizes and types; `check_index` has seen that nothing else is named."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if module != "torch":
            return _Found
        found: Any = _size if name == "Size" else name  # else a type of elements
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
    spec = Spec(tuple(fields["size"]), fields["properties"].fields[0])
    if spec.dtype not in ITEM_BYTES:
        raise CheckpointError(f"{name} has type {spec.dtype}, which is not read here")
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


class _Enum(Record):
    """A member of an enum, which is made from its value."""

    def __reduce__(self) -> Any:
        return type(self), (0,)


_DCP = "torch.distributed.checkpoint"
_METADATA = record_class(f"{_DCP}.metadata.Metadata")
_INDEX = record_class(f"{_DCP}.metadata.MetadataIndex")
_TENSOR = record_class(f"{_DCP}.metadata.TensorStorageMetadata")
_CHUNK = record_class(f"{_DCP}.metadata.ChunkStorageMetadata")
_PROPERTIES = record_class(f"{_DCP}.metadata.TensorProperties")
_META = record_class(f"{_DCP}.metadata.StorageMeta")
_PLACE = record_class(f"{_DCP}.filesystem._StorageInfo")
_MEMORY_FORMAT = record_class(f"{_DCP}.metadata._MEM_FORMAT_ENCODING", _Enum)


def index_of(specs: Mapping[str, Spec], aliases: Mapping[str, str], items: Sequence[Item]) -> bytes:
    """The index of whole tensors, each an item of a file; an alias is a name for what lies there already."""
    by_name = {item.key: item for item in items}
    held = {**{name: name for name in specs}, **aliases}
    tensors, places = {}, {}
    for name, holder in held.items():
        spec, item = specs[holder], by_name[holder]
        start, size = (Made("torch.Size", (box,)) for box in ((0,) * len(spec.shape), spec.shape))
        chunk = _CHUNK.of({"offsets": start, "sizes": size})
        tensors[name] = _TENSOR.of({"properties": _properties(spec.dtype), "size": size, "chunks": [chunk]})
        index = _INDEX.of({"fqn": name, "offset": start, "index": 0})
        places[index] = _PLACE.of({"relative_path": item.file, "offset": item.offset, "length": item.length})
    fields = {
        "state_dict_metadata": tensors,
        "planner_data": {name: (name,) for name in held},
        "storage_data": places,
        "storage_meta": _META.of({"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}),
        "version": "1.0.0",
    }
    with io.BytesIO() as file:
        Pickler(file).dump(_METADATA.of(fields))
        return file.getvalue()


def _properties(dtype: str) -> Record:
    strided = Made("torch.serialization._get_layout", ("torch.strided",))
    return _PROPERTIES.of((Name(f"torch.{dtype}"), strided, False, _MEMORY_FORMAT(), False))
