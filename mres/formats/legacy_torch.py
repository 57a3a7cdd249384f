"""A file of torch.save as it was before torch 1.6: pickles one after another, then the storages' bytes."""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mres.formats.open_files import OpenFiles
from mres.formats.tensors import ITEM_BYTES
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_pickle import TorchUnpickler

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class LegacyArchive(TorchArchive):
    """What such a file holds; there are no checksums in it. Arguments and errors are those of `TorchArchive`."""

    def __init__(
        self, files: OpenFiles, path: Path, *, unpickler: Callable[..., TorchUnpickler] = TorchUnpickler
    ) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        super().__init__(files, path, unpickler=unpickler, check_sums=False)

    def _place(self, key: str) -> tuple[int, int]:
        return self._places[key]

    def _read(self, unpickler: Callable[..., TorchUnpickler]) -> Any:
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return self._go_through(content, unpickler)

    def _go_through(self, content: mmap.mmap, unpickler: Callable[..., TorchUnpickler]) -> Any:
        """The structure; on the way, where the storages lie."""
        values: list[Any] = []
        at = 0
        for _ in range(5):  # magic number, version, facts of the machine, the structure, its storages in their order
            machine = unpickler(content, at=at)
            values.append(machine.load())
            at = machine.at
            if values[0] != _MAGIC:
                raise ValueError("it is no file of torch.save")
            if len(values) == 4:
                storages = machine.storages
        if values[1] != _PROTOCOL or values[2].get("little_endian") != (sys.byteorder == "little"):
            raise ValueError(f"it is of version {values[1]} or of a machine with another order of bytes")
        for key in values[4]:
            (numel,) = struct.unpack_from("<q", content, at)
            size = numel * ITEM_BYTES[storages[key].dtype]
            if numel < 0 or at + 8 + size > len(content):
                raise ValueError("it ends in the middle of a tensor")
            self._places[key] = at + 8, size
            at += 8 + size
        if missing := storages.keys() - self._places.keys():
            raise ValueError(f"it lacks the storage {min(missing)}")
        return values[3]
