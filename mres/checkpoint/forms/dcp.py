"""The form that runs write: a PyTorch distributed checkpoint (DCP), read from its pieces and written tensor by tensor."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from mres.checkpoint.folder import DCP_METADATA, CheckpointError, FileFacts
from mres.checkpoint.forms.dcp_metadata import Chunk, index_of, read_index
from mres.checkpoint.forms.form import Progress, Spec, TensorSource, split_by_bytes
from mres.checkpoint.forms.workspace import GrowingFile, Item, Workspace
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
        self._checked: set[tuple[str, int]] = set()
        self._files: dict[str, BinaryIO] = {}
        self._chunks: dict[str, list[Chunk]] = {}
        self.specs: dict[str, Spec] = {}
        self.aliases: dict[str, str] = {}
        first: dict[Any, str] = {}
        for name, (spec, chunks) in read_index(folder).items():
            holder = first.setdefault(tuple((chunk.file, chunk.start) for chunk in chunks) or name, name)
            if holder != name:
                self.aliases[name] = holder
                continue
            if sum(math.prod(chunk.sizes) for chunk in chunks) != spec.shape.numel():
                raise CheckpointError(f"{folder}: {name} is not whole: its pieces do not make its shape")
            self.specs[name], self._chunks[name] = spec, chunks

    def read(self, name: str) -> Tensor:
        spec, chunks = self.specs[name], self._chunks[name]
        if len(chunks) == 1:
            return self._read(name, spec, chunks[0])
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for chunk in chunks:
            box = tuple(slice(start, start + size) for start, size in zip(chunk.offset, chunk.sizes, strict=True))
            whole[box] = self._read(name, spec, chunk)
        return whole

    def _read(self, name: str, spec: Spec, chunk: Chunk) -> Tensor:
        where = f"{self._folder / chunk.file}: {name}"
        if chunk.file not in self._files:
            self._files[chunk.file] = (self._folder / chunk.file).open("rb", buffering=0)
        part = _Slice(self._files[chunk.file].fileno(), chunk.start, chunk.length)
        try:
            if self._check_sums and (chunk.file, chunk.start) not in self._checked:
                if broken := ZipFile(part).testzip():
                    raise BadZipFile(f"{broken} differs from its checksum")
                self._checked.add((chunk.file, chunk.start))
            part.seek(0)
            tensor = torch.load(part, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
        except Exception as error:  # torch raises a dozen types for what is damaged
            raise CheckpointError(f"{where} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(tensor, Tensor) or tensor.shape != chunk.sizes or tensor.dtype != spec.dtype:
            raise CheckpointError(f"{where} is damaged: it is not of the shape and type that {DCP_METADATA} says")
        return tensor


class _Slice(io.RawIOBase):
    """A part of a file, to read and to seek in."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length = descriptor, start, length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        got = os.preadv(self._descriptor, [view], self._start + self._at)
        self._at += got
        return got


def write_dcp(source: TensorSource, work: Workspace, progress: Progress) -> None:
    """Writes every tensor of the source, one after another, as one process would."""
    items: list[Item] = []
    for number, names in enumerate(split_by_bytes(source.specs, _FILE_BYTES)):
        items += work.write_file(f"__0_{number}.distcp", _items(source, names, progress))
    path = work.folder / DCP_METADATA
    write_durably(path, index_of(source.specs, source.aliases, items))
    work.facts[path.name] = FileFacts.of(path)


def _items(
    source: TensorSource, names: list[str], progress: Progress
) -> Iterator[tuple[str, Callable[[GrowingFile], None]]]:
    for name in names:
        yield name, partial(_write_tensor, source, name, progress)


def _write_tensor(source: TensorSource, name: str, progress: Progress, file: GrowingFile) -> None:
    tensor = source.read(name).detach().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:  # torch.save would write all that it is a part of
        tensor = tensor.clone()
    torch.save(tensor, file)  # type: ignore[arg-type]
    progress(tensor.nbytes)
