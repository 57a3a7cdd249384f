"""DCP's index of tensors, `.metadata`, read without torch and before anybody unpickles it: where the boxes of each lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mres.formats.folder import DCP_METADATA, CheckpointError
from mres.formats.tensors import ITEM_BYTES, Spec
from mres.formats.torch_pickle import SIZE
from mres.io.files import read_regular
from mres.io.object_unpickling import ObjectUnpickler
from mres.io.unpickling import Inert, RefusedError

# A box of a tensor takes some hundred bytes of the index, and over a thousand of the file that holds it.
_MAX_BYTES, _MAX_BYTES_MORE_THAN_FILES = 1 << 30, 1 << 20
_BYTES_A_CONTAINER = 4  # of the index, for each list, tuple or record in it beyond the first thousand: there are 10
_MAX_CELLS = 1 << 26
# All that the metadata of tensors consists of. Anything else in it could run when PyTorch unpickles it; of an object
# that is no tensor (BytesStorageMetadata), the object itself would be unpickled, freely.
_RECORDS = {
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
}


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


class _Record(Inert):
    """Stands for any of DCP's dataclasses: its fields, as they were pickled."""

    __slots__ = ("fields",)

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.fields: Any = None

    def __setstate__(self, state: Any) -> None:
        self.fields = state


def _compact(*keys: str) -> type[_Record]:
    """For what there is one of a box: its fields in the order of `keys`; a dictionary each would take most of the memory."""

    class Compact(_Record):
        __slots__ = ()

        def __setstate__(self, state: Any) -> None:
            self.fields = tuple(map(state.get, keys))
            state.clear()  # the machine remembers it

    return Compact


_OF_BOXES = {
    "torch.distributed.checkpoint.metadata.MetadataIndex": _compact("fqn", "offset"),
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata": _compact("offsets", "sizes"),
    "torch.distributed.checkpoint.filesystem._StorageInfo": _compact(
        "relative_path", "offset", "length", "transform_descriptors"
    ),
}


class _Unpickler(ObjectUnpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.most_containers = 1000 + len(content) // _BYTES_A_CONTAINER

    def named(self, full: str) -> Any:
        if full in _OF_BOXES:
            return _OF_BOXES[full]
        if full in _RECORDS:
            return _Record
        if full == "torch.Size":
            return SIZE
        dtype = full.removeprefix("torch.")
        return dtype if dtype in ITEM_BYTES else None


def read_index(folder: Path, sizes: Mapping[str, int] | None = None) -> dict[str, tuple[Spec, list[Chunk]]]:
    """Every tensor of a DCP checkpoint and where its boxes lie.

    Args:
        sizes: bytes of the files that it may speak of; without, those beside it.

    Raises:
        CheckpointError: there is no index, it could run code, or it does not say where all of a tensor lies.
    """
    path = folder / DCP_METADATA
    if sizes is None:
        sizes = {file.name: file.stat().st_size for file in folder.glob("*.distcp")}
    try:
        content = read_regular(path, min(_MAX_BYTES, sum(sizes.values()) + _MAX_BYTES_MORE_THAN_FILES))
        fields = _Unpickler(content).load().fields
        places = _places(fields["storage_data"], sizes)
        return {name: _tensor(name, entry.fields, places) for name, entry in fields["state_dict_metadata"].items()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except RefusedError as error:
        raise CheckpointError(f"{path} is refused: {error}; take the checkpoint again from where it came") from None
    except Exception as error:  # a pickle can fail in any way
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is damaged: it does not say where all tensors lie ({reason})") from None


def _places(stored: Mapping[Any, Any], sizes: Mapping[str, int]) -> dict[Any, tuple[str, int, int]]:
    """By a box's tensor and offset: file, start and length of the part that holds it."""
    found = {}
    for (tensor, at), (name, offset, length, transforms) in ((i.fields, place.fields) for i, place in stored.items()):
        if type(name) is not str or type(tensor) is not str:
            raise ValueError("a tensor or its file has no name")
        if Path(name).name != name:
            raise RefusedError(f"it has a tensor in '{name}', outside of the checkpoint's folder")
        if name not in sizes:
            raise RefusedError(f"it has a tensor in '{name}', which the manifest does not list or is not there")
        if not 0 <= offset <= offset + length <= sizes[name]:
            raise RefusedError(
                f"it has a tensor at bytes {offset} to {offset + length} of '{name}', which has {sizes[name]}"
            )
        if transforms:
            raise RefusedError(f"{tensor} was written through an extension of DCP (compressed), which is not read here")
        found[tensor, _ints(at)] = name, offset, length
    return found


def _tensor(
    name: str, fields: Mapping[str, Any], places: Mapping[Any, tuple[str, int, int]]
) -> tuple[Spec, list[Chunk]]:
    spec = Spec(_ints(fields["size"]), fields["properties"].fields[0])
    if spec.dtype not in ITEM_BYTES:
        raise ValueError(f"{name} has no type")
    chunks = []
    for box in fields["chunks"]:
        offset, sizes = map(_ints, box.fields)
        chunk = Chunk(offset, sizes, *places[name, offset])
        if chunk.numel * ITEM_BYTES[spec.dtype] > chunk.length:
            raise RefusedError(f"it says that {chunk.length} bytes of '{chunk.file}' hold {sizes} of {name}")
        chunks.append(chunk)
    if not _fills(chunks, spec.shape):
        raise ValueError(f"{name} is not whole: its pieces do not make its shape")
    return spec, chunks


def _ints(numbers: Sequence[Any]) -> tuple[int, ...]:
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a size or a place is none")
    return tuple(numbers)


def _fills(chunks: Sequence[Chunk], shape: tuple[int, ...]) -> bool:
    """Whether the boxes cover all of the shape, and nothing of it twice."""
    for chunk in chunks:
        if not len(chunk.offset) == len(chunk.sizes) == len(shape):
            return False
        if any(start + size > whole for start, size, whole in zip(chunk.offset, chunk.sizes, shape, strict=True)):
            return False
    if sum(chunk.numel for chunk in chunks) != math.prod(shape):
        return False
    filled = [chunk for chunk in chunks if chunk.numel]
    if len(filled) <= 1:
        return bool(chunks)
    return _covers(filled, len(shape))


def _covers(chunks: Sequence[Chunk], num_dims: int) -> bool:
    """Whether boxes leave no gap between their outermost edges and do not overlap: each is whole cells of a grid."""
    edges = []
    for dim in range(num_dims):
        of_dim = sorted({edge for c in chunks for edge in (c.offset[dim], c.offset[dim] + c.sizes[dim])})
        edges.append({edge: cell for cell, edge in enumerate(of_dim)})
    if math.prod(len(of_dim) - 1 for of_dim in edges) > _MAX_CELLS:
        raise RefusedError("it cuts a tensor into boxes that are no grid")
    covered = np.zeros([len(of_dim) - 1 for of_dim in edges], bool)
    for chunk in chunks:
        cells = tuple(slice(of[s.start], of[s.stop]) for of, s in zip(edges, chunk.slices, strict=True))
        if covered[cells].any():
            return False
        covered[cells] = True
    return True
