"""The form that runs write: a PyTorch distributed checkpoint (DCP), read from its pieces and written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mres.checkpoint.folder import DCP_METADATA, CheckpointError, FileFacts
from mres.checkpoint.forms.dcp_metadata import Chunk, index_of, read_index
from mres.checkpoint.forms.form import ITEM_BYTES, Progress, Spec, TensorSource, split_by_bytes
from mres.checkpoint.forms.memory import Buffer, Reader
from mres.checkpoint.forms.open_files import OpenFiles
from mres.checkpoint.forms.torch_archive import TorchArchive
from mres.checkpoint.forms.torch_archive_writer import TorchArchiveWriter
from mres.checkpoint.forms.torch_pickle import StoredTensor
from mres.checkpoint.forms.workspace import HashedFile, Item, Workspace
from mres.files import write_durably

# So that a file is neither one of hundreds nor too large for a store to take at once.
_FILE_BYTES = 1 << 30


class DcpSource:
    """The tensors of a DCP folder, whoever wrote it.

    Args:
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
    ) -> None:
        self._folder, self.state, self.config_yaml = folder, state, config_yaml
        self._check_sums = check_sums
        self._checked: set[Chunk] = set()
        self._buffer, self._checking = Buffer(), Buffer()
        self._files = OpenFiles()
        self._chunks: dict[str, list[Chunk]] = {}
        self.specs: dict[str, Spec] = {}
        self.aliases: dict[str, str] = {}
        first: dict[Any, str] = {}
        for name, (spec, chunks) in read_index(folder).items():
            holder = first.setdefault(tuple((chunk.file, chunk.start) for chunk in chunks) or name, name)
            if holder != name:
                self.aliases[name] = holder
                continue
            if sum(chunk.numel for chunk in chunks) != spec.numel:
                raise CheckpointError(f"{folder}: {name} is not whole: its pieces do not make its shape")
            self.specs[name], self._chunks[name] = spec, chunks

    def read_into(self, name: str, target: memoryview) -> None:
        spec = self.specs[name]
        row_bytes = spec.num_bytes // spec.shape[0] if spec.numel and spec.shape else spec.num_bytes
        for chunk in self._chunks[name]:
            if chunk.sizes[1:] == spec.shape[1:]:  # whole rows lie one after another
                start = chunk.offset[0] * row_bytes if chunk.offset else 0
                self._read(name, spec, chunk, target[start : start + chunk.numel * ITEM_BYTES[spec.dtype]])
            else:
                box = self._buffer.take(chunk.numel * ITEM_BYTES[spec.dtype])
                self._read(name, spec, chunk, box)
                _elements(target, spec.dtype, spec.shape)[chunk.slices] = _elements(box, spec.dtype, chunk.sizes)

    def check_items(self) -> None:
        """Looks at what torch.load would unpickle, so that nobody comes to load what could run.

        Raises:
            CheckpointError: an item is something else than the tensor that the index says.
        """
        for name, chunks in self._chunks.items():
            for chunk in chunks:
                try:
                    self._open(self.specs[name], chunk)
                except (ValueError, OSError) as error:
                    raise CheckpointError(f"{self._folder / chunk.file}: {name} is refused: {error}") from None

    def _open(self, spec: Spec, chunk: Chunk) -> tuple[TorchArchive, StoredTensor]:
        archive = TorchArchive(self._files, self._folder / chunk.file, chunk.start, chunk.length)
        tensor = archive.structure
        if not isinstance(tensor, StoredTensor) or (tensor.shape, tensor.dtype) != (chunk.sizes, spec.dtype):
            raise ValueError(f"it is not of the shape and type that {DCP_METADATA} says")
        return archive, tensor

    def _read(self, name: str, spec: Spec, chunk: Chunk, target: memoryview) -> None:
        try:
            archive, tensor = self._open(spec, chunk)
            if self._check_sums and chunk not in self._checked:
                archive.check(tensor, self._checking)
                self._checked.add(chunk)
            if tensor.is_contiguous:
                archive.read_into(tensor, target)
            else:
                self._read_strided(archive, tensor, target)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._folder / chunk.file}: {name} cannot be read: {error}") from None

    def _read_strided(self, archive: TorchArchive, tensor: StoredTensor, target: memoryview) -> None:
        """Of what was transposed: its elements lie in another order, perhaps with others between them."""
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        lying = StoredTensor(tensor.key, tensor.dtype, tensor.offset, (last + 1,), (1,))
        memory = np.empty((last + 1) * ITEM_BYTES[tensor.dtype], np.uint8)
        archive.read_into(lying, memory.data)
        flat = _elements(memory.data, tensor.dtype, (last + 1,))
        strides = [stride * flat.itemsize for stride in tensor.strides]
        found = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
        _elements(target, tensor.dtype, tensor.shape)[...] = found


def _elements(memory: memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Elements to be moved, whatever they mean."""
    return np.frombuffer(memory, f"V{ITEM_BYTES[dtype]}").reshape(shape)


def write_dcp(source: TensorSource, work: Workspace, progress: Progress) -> None:
    """Writes every tensor of the source, one after another, as one process would."""
    items: list[Item] = []
    reader = Reader(source)
    for number, names in enumerate(split_by_bytes(source.specs, _FILE_BYTES)):
        items += work.write_file(f"__0_{number}.distcp", _items(source, reader, names, progress))
    path = work.folder / DCP_METADATA
    write_durably(path, index_of(source.specs, source.aliases, items))
    work.facts[path.name] = FileFacts.of(path)


def _items(
    source: TensorSource, reader: Reader, names: list[str], progress: Progress
) -> Iterator[tuple[str, Callable[[HashedFile], None]]]:
    for name in names:
        yield name, partial(_write_tensor, reader, name, source.specs[name], progress)


def _write_tensor(reader: Reader, name: str, spec: Spec, progress: Progress, file: HashedFile) -> None:
    archive = TorchArchiveWriter(file)
    written = archive.begin(spec)
    archive.append(reader.read(name))
    archive.finish(written)
    progress(spec.num_bytes)
