"""The folder in which a checkpoint is made: files grow item by item and are hashed as they do; a kill loses little.

    <out>.incomplete/{journal.jsonl, result/…}

The journal's first line says what is made of what; every other one an item that is on the disk, or a whole file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from mres.checkpoint.folder import FileFacts
from mres.files import fsync, make_folder

# What a kill may lose; each time, the disk is waited for.
_NOTE_EVERY_BYTES = 1 << 28
_PIECE_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Item:
    """Where something that was written lies."""

    file: str
    key: str
    offset: int
    length: int


class Workspace:
    """What is being made in `folder`, taken up where a killed process for the same `purpose` left it.

    Attributes:
        result: what is to be published.
        folder: of the files, in the result or the result itself.
        facts: of the files that are whole.
        taken_up: bytes that were there.
    """

    def __init__(self, root: Path, purpose: str, inside: str = "") -> None:
        self.result, self._journal = root / "result", root / "journal.jsonl"
        self.folder = self.result / inside
        self.facts: dict[str, FileFacts] = {}
        self._items: dict[str, list[Item]] = {}
        if not self._take_up(purpose):
            rmtree(root, ignore_errors=True)
            make_folder(self.folder)
            self._note([{"purpose": purpose}])
        self.taken_up = sum(item.length for items in self._items.values() for item in items)

    def _take_up(self, purpose: str) -> bool:
        lines = _lines_of(self._journal)
        if not lines or lines[0] != {"purpose": purpose} or not self.folder.is_dir():
            return False
        for line in lines[1:]:
            if "sha256" in line:
                self.facts[line["file"]] = FileFacts(line["bytes"], line["sha256"])
            else:
                self._items.setdefault(line["file"], []).append(Item(**line))
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}
        whole = all(sizes.get(name) == facts.bytes for name, facts in self.facts.items())
        return whole and all(
            sizes.get(name, 0) >= items[-1].offset + items[-1].length for name, items in self._items.items()
        )

    def _note(self, lines: list[dict[str, Any]]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def write_file(self, name: str, items: Iterator[tuple[str, Callable[[GrowingFile], None]]]) -> list[Item]:
        """Writes what is not there of a file, the items one after another; returns where all of them lie."""
        noted = self._items.setdefault(name, [])
        if name in self.facts:
            return noted
        with _grow(self.folder / name, noted) as file:
            pending: list[Item] = []
            for number, (key, write) in enumerate(items):
                if number < len(noted):
                    assert noted[number].key == key, "the same source gives the same items"
                    continue
                start = file.tell()
                write(file)
                pending.append(Item(name, key, start, file.tell() - start))
                if sum(item.length for item in pending) >= _NOTE_EVERY_BYTES:
                    file.sync()
                    self._note([asdict(item) for item in pending])
                    noted, pending = noted + pending, []
            file.sync()
            noted = self._items[name] = noted + pending
            self.facts[name] = file.facts()
        self._note([*map(asdict, pending), {"file": name, **asdict(self.facts[name])}])
        return noted


def _lines_of(journal: Path) -> list[dict[str, Any]]:
    """Up to one that a kill has cut off."""
    lines: list[dict[str, Any]] = []
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


class GrowingFile:
    """A file to append to; every byte is hashed while the disk takes it."""

    def __init__(self, descriptor: int, hasher: ThreadPoolExecutor) -> None:
        self._descriptor, self._hasher = descriptor, hasher
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        """Bytes, or what has a buffer of them; all of it is written.

        Raises:
            OSError: it was not.
        """
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        hashed = self._hasher.submit(self._digest.update, view) if view.nbytes > _PIECE_BYTES else None
        try:
            done = 0
            while done < view.nbytes:
                done += os.write(self._descriptor, view[done : done + _PIECE_BYTES])
        finally:
            if hashed is not None:
                hashed.result()
        if hashed is None:
            self._digest.update(view)
        self._size += view.nbytes
        return view.nbytes

    def skip(self, num_bytes: int) -> None:
        """Goes behind bytes that the file has already."""
        while num_bytes:
            piece = os.read(self._descriptor, min(num_bytes, _PIECE_BYTES))
            assert piece, "the file was as long as was noted"
            self._digest.update(piece)
            self._size += len(piece)
            num_bytes -= len(piece)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is buffered."""

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def facts(self) -> FileFacts:
        return FileFacts(self._size, self._digest.hexdigest())


@contextmanager
def _grow(path: Path, noted: list[Item]) -> Iterator[GrowingFile]:
    """The file, cut off behind its last noted item."""
    end = noted[-1].offset + noted[-1].length if noted else 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(descriptor, end)
        with ThreadPoolExecutor(1) as hasher:
            file = GrowingFile(descriptor, hasher)
            file.skip(end)
            yield file
    finally:
        os.close(descriptor)
    fsync(path.parent)
