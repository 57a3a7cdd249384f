"""The format that runs write: a PyTorch distributed checkpoint (DCP), read from its pieces and written tensor by tensor."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mres.formats.dcp_index import Chunk, read_index
from mres.formats.folder import DCP_METADATA, CheckpointError
from mres.formats.memory import Buffer, Reader, elements
from mres.formats.open_files import OpenFiles
from mres.formats.pickling import Made, Name, Pickler, Record, record_class
from mres.formats.tensors import Progress, Spec, TensorSource, split_by_bytes
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_archive_writer import TorchArchiveWriter
from mres.formats.torch_pickle import StoredTensor
from mres.formats.workspace import HashedFile, Item, Workspace

# So that a file is neither one of hundreds nor too large for a store to take at once.
_FILE_BYTES = 1 << 30


class DcpSource(TensorSource):
    """The tensors of a DCP folder, whoever wrote it.

    Args:
        sizes: of the files that it may consist of; without, those beside its index.
        check_sums: compare the checksums that torch.save left with every tensor when it is read first, as there is no
            manifest.

    Raises:
        CheckpointError: it is none, or its index cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        state: dict[str, Any] | None = None,
        config_yaml: str | None = None,
        *,
        check_sums: bool = False,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self._folder, self.state, self.config_yaml = folder, state, config_yaml
        self._check_sums = check_sums
        self._checked: set[Chunk] = set()
        self._buffer = Buffer()
        self._files = OpenFiles()
        self._chunks: dict[str, list[Chunk]] = {}
        self.specs: dict[str, Spec] = {}
        self.aliases: dict[str, str] = {}
        first: dict[Any, str] = {}
        for name, (spec, chunks) in read_index(folder, sizes).items():
            holder = first.setdefault((spec, tuple(chunks)), name)
            if holder != name:
                self.aliases[name] = holder
                continue
            self.specs[name], self._chunks[name] = spec, chunks

    def read_into(self, name: str, target: memoryview) -> None:
        spec = self.specs[name]
        whole = elements(target, spec.dtype, spec.shape)
        for chunk in self._chunks[name]:
            archive = self._open(name, chunk)
            # An index of nothing would give a copy of the one element.
            archive.read_box(archive.structure, whole[chunk.slices] if chunk.slices else whole, self._buffer)
            self._checked.add(chunk)

    def check_items(self) -> None:
        """Looks at what torch.load would unpickle, so that nobody comes to load what could run.

        Raises:
            CheckpointError: an item is something else than the tensor that the index says.
        """
        for name, chunks in self._chunks.items():
            for chunk in chunks:
                self._open(name, chunk)

    def _open(self, name: str, chunk: Chunk) -> TorchArchive:
        path, spec = self._folder / chunk.file, self.specs[name]
        check_sums = self._check_sums and chunk not in self._checked
        archive = TorchArchive(self._files, path, chunk.start, chunk.length, check_sums=check_sums)
        tensor = archive.structure
        if not isinstance(tensor, StoredTensor) or (tensor.shape, tensor.dtype) != (chunk.sizes, spec.dtype):
            raise CheckpointError(f"{path} is refused: {name} is not of the shape and type that {DCP_METADATA} says")
        return archive


def write_dcp(source: TensorSource, work: Workspace, progress: Progress) -> None:
    """Writes every tensor of the source, one after another, as one process would."""
    reader = Reader(source)

    def write(name: str, file: HashedFile) -> None:
        archive, spec = TorchArchiveWriter(file), source.specs[name]
        written = archive.begin(spec)
        archive.append(reader.read(name))
        archive.finish(written)
        progress(spec.num_bytes)

    items: list[Item] = []
    for number, names in enumerate(split_by_bytes(source.specs, _FILE_BYTES)):
        items += work.write_file(f"__0_{number}.distcp", ((name, partial(write, name)) for name in names))
    work.write_index(DCP_METADATA, _index_of(source.specs, source.aliases, items))


class _Enum(Record):
    """A member of an enum, which is made from its value."""

    def __reduce__(self) -> Any:
        return type(self), (0,)


# The index is written without torch: a pickle of nothing but plain records.
_DCP = "torch.distributed.checkpoint"
_METADATA = record_class(f"{_DCP}.metadata.Metadata")
_INDEX = record_class(f"{_DCP}.metadata.MetadataIndex")
_TENSOR = record_class(f"{_DCP}.metadata.TensorStorageMetadata")
_CHUNK = record_class(f"{_DCP}.metadata.ChunkStorageMetadata")
_PROPERTIES = record_class(f"{_DCP}.metadata.TensorProperties")
_META = record_class(f"{_DCP}.metadata.StorageMeta")
_PLACE = record_class(f"{_DCP}.filesystem._StorageInfo")
_MEMORY_FORMAT = record_class(f"{_DCP}.metadata._MEM_FORMAT_ENCODING", _Enum)


def _index_of(specs: Mapping[str, Spec], aliases: Mapping[str, str], items: Sequence[Item]) -> bytes:
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
