"""Files of a folder in the making: they grow by appending, and a kill loses little of them.

Beside its first line, the journal has one for every item that is on the disk, for every whole file, and for the states of
files that grow together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mres.formats.folder import FileFacts
from mres.formats.memory import read_at
from mres.io.files import fsync, make_folder, write_durably
from mres.io.staged import Staged

# What a kill may lose; each time, the disk is waited for.
NOTE_EVERY_BYTES = 1 << 28
_PIECE_BYTES = 1 << 22
_HASHED_AT_ONCE_BYTES = 1 << 17  # handing it to another thread would take as long


@dataclass(frozen=True, slots=True)
class Item:
    """Where something that was written lies."""

    file: str
    key: str
    offset: int
    length: int


class Workspace:
    """The files of what is staged, taken up where a killed process for the same purpose left them.

    Args:
        inside: the folder of the files in the result, or the result itself.

    Attributes:
        folder: of the files.
        facts: of the files that are whole.
        states: of files that grow together, what whoever wrote them last noted.
        taken_up: bytes that were there.
    """

    def __init__(self, stage: Staged, inside: str = "") -> None:
        self._journal, self.folder = stage.journal, stage.result / inside
        self.facts: dict[str, FileFacts] = {}
        self.states: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._items: dict[str, list[Item]] = {}
        make_folder(self.folder)
        if not self._take_up():
            for found in (self.facts, self.states, self._sizes, self._items):
                found.clear()
            stage.begin()
            make_folder(self.folder)
        items = sum(item.length for items in self._items.values() for item in items)
        self.taken_up = items + sum(self._sizes.values())

    def _take_up(self) -> bool:
        """Whether the files are what the journal says."""
        lines, end = _lines_of(self._journal)
        os.truncate(self._journal, end)  # what comes next must not go on in a line that a kill has cut off
        for line in lines[1:]:
            if "sha256" in line:
                self.facts[line["file"]] = FileFacts(line["bytes"], line["sha256"])
            elif "states" in line:
                self.states |= line["states"]
                self._sizes |= line["sizes"]
            else:
                self._items.setdefault(line["file"], []).append(Item(**line))
        ends = {name: items[-1].offset + items[-1].length for name, items in self._items.items()}
        return all(self._size(name) == facts.bytes for name, facts in self.facts.items()) and all(
            self._size(name) >= end for name, end in (ends | self._sizes).items()
        )

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else -1

    def _note(self, lines: list[dict[str, Any]]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def write_file(self, name: str, items: Iterator[tuple[str, Callable[[HashedFile], None]]]) -> list[Item]:
        """Writes what is not there of a file, the items one after another; returns where all of them lie."""
        noted = self._items.setdefault(name, [])
        if name in self.facts:
            return noted
        end = noted[-1].offset + noted[-1].length if noted else 0
        with ThreadPoolExecutor(1) as hasher, closing(HashedFile(self.folder / name, end, hasher)) as file:
            pending: list[Item] = []
            for number, (key, write) in enumerate(items):
                if number < len(noted):
                    assert noted[number].key == key, "the same source gives the same items"
                    continue
                start = file.tell()
                write(file)
                pending.append(Item(name, key, start, file.tell() - start))
                if file.tell() - pending[0].offset >= NOTE_EVERY_BYTES:
                    file.sync()
                    self._note([asdict(item) for item in pending])
                    noted, pending = noted + pending, []
            file.sync()
            noted = self._items[name] = noted + pending
            self.facts[name] = file.facts()
        fsync(self.folder)
        self._note([*map(asdict, pending), {"file": name, **asdict(self.facts[name])}])
        return noted

    def write_index(self, name: str, content: bytes) -> None:
        """A small file that says what is in the others; it is on the disk then."""
        write_durably(self.folder / name, content)
        fsync(self.folder)
        self.facts[name] = FileFacts.of(self.folder / name)

    def append_to(self, name: str) -> AppendedFile:
        """A file that ends where its noted state is; the caller closes it."""
        path = self.folder / name
        make_folder(path.parent)
        return AppendedFile(path, self._sizes.get(name, 0))

    def note_states(self, files: Mapping[str, tuple[AppendedFile, Any]]) -> None:
        """Brings files to the disk that grow together; from now on a kill costs nothing of them."""
        for file, _ in files.values():
            file.sync()
        for folder in {(self.folder / name).parent for name in files}:
            fsync(folder)
        sizes = {name: file.tell() for name, (file, _) in files.items()}
        self._note([{"states": {name: state for name, (_, state) in files.items()}, "sizes": sizes}])


def _lines_of(journal: Path) -> tuple[list[dict[str, Any]], int]:
    """Up to one that a kill has cut off, and the bytes that they take."""
    lines: list[dict[str, Any]] = []
    end = 0
    for line in journal.read_bytes().splitlines(keepends=True):
        try:
            lines.append(json.loads(line if line.endswith(b"\n") else b""))
        except ValueError:
            break
        end += len(line)
    return lines, end


class AppendedFile:
    """A file to append to, cut off behind its first `size` bytes."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)
        self._size = size

    def write(self, data: Any) -> int:
        """Bytes, or what has a buffer of them; all of it is written.

        Raises:
            OSError: it was not.
        """
        view = memoryview(data)
        if view.nbytes:
            self._write(view.cast("B"))
            self._size += view.nbytes
        return view.nbytes

    def _write(self, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            done += os.write(self._descriptor, view[done : done + _PIECE_BYTES])

    def tell(self) -> int:
        return self._size

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class HashedFile(AppendedFile):
    """Every byte is hashed while the disk takes it; what the file has already, first."""

    def __init__(self, path: Path, size: int, hasher: ThreadPoolExecutor) -> None:
        super().__init__(path, size)
        self._hasher, self._digest = hasher, hashlib.sha256()
        piece = memoryview(bytearray(min(size, _PIECE_BYTES)))
        for at in range(0, size, _PIECE_BYTES):
            read_at(self._descriptor, at, piece[: size - at])
            self._digest.update(piece[: size - at])

    def _write(self, view: memoryview) -> None:
        if view.nbytes < _HASHED_AT_ONCE_BYTES:
            super()._write(view)
            self._digest.update(view)
            return
        hashed = self._hasher.submit(self._digest.update, view)
        try:
            super()._write(view)
        finally:
            hashed.result()

    def facts(self) -> FileFacts:
        return FileFacts(self._size, self._digest.hexdigest())
