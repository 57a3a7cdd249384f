"""DCP's index, `.metadata`, written without torch: a pickle of nothing but plain records."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from mres.formats.pickling import Made, Name, Pickler, Record, record_class
from mres.formats.tensors import Spec
from mres.formats.workspace import Item


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
