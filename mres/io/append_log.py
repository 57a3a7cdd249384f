"""Logs: files that grow by whole entries.

An entry is in the file whole or not at all. It is not waited for that the disk has it: of a machine that loses power the
last entries may be lost, of a process that is killed none.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mres.errors import about_os
from mres.io.files import check_regular, named

# What waits for room on the disk: days of metrics, and little memory.
_MOST_WAITING = 10_000


class AppendLog:
    """The file at `path`, which the first entry makes.

    Args:
        say: told of what was repaired, waits or is lost.
        separator: what every entry ends with, such as a newline: what stands behind the last one was cut off, and goes.
        patient: an entry that the disk does not take waits in memory and is tried again with the next one; otherwise
            that is an OSError, which names the file.
    """

    def __init__(
        self, path: Path, say: Callable[[str], None], *, separator: bytes = b"", patient: bool = False
    ) -> None:
        self.path, self._say, self._separator, self._patient = path, say, separator, patient
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._lost = 0
        self._fails = False

    def add(self, entry: bytes) -> None:
        """Appends it, behind those that wait."""
        self._lost += len(self._waiting) == _MOST_WAITING
        self._waiting.append(entry)
        self.flush()

    def flush(self, *, last: bool = False) -> None:
        """Tries again what waits; with `last`, what still does is lost, and said so."""
        if not self._waiting:
            return
        try:
            self._append(b"".join(self._waiting))
        except OSError as error:
            if not self._patient:
                self._waiting.clear()
                raise
            if last:
                self._say(
                    f"warning: {len(self._waiting) + self._lost} entries of '{self.path}' are lost: {about_os(error)}"
                )
            elif not self._fails:
                self._say(
                    f"warning: the run goes on without new entries in '{self.path}', which wait: {about_os(error)}"
                )
            self._fails = True
            return
        if self._fails:
            lost = f"; {self._lost} older ones are lost" if self._lost else ""
            self._say(f"'{self.path}' takes entries again: {len(self._waiting)} that waited are in it{lost}")
        self._waiting.clear()
        self._fails, self._lost = False, 0

    @property
    def waiting(self) -> tuple[bytes, ...]:
        return tuple(self._waiting)

    def forget(self, keep: Callable[[bytes], bool]) -> None:
        """Of the entries that wait, only those stay that `keep` wants."""
        self._waiting = deque(filter(keep, self._waiting), maxlen=_MOST_WAITING)

    def _append(self, content: bytes) -> None:
        with named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
            try:
                check_regular(descriptor, self.path)
                before = self._cut_off(descriptor)
                try:
                    _write_all(descriptor, content)
                except OSError:
                    os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)

    def _cut_off(self, descriptor: int) -> int:
        """Takes away what a kill, or a disk that was full, has left of an entry; the size then."""
        size = os.fstat(descriptor).st_size
        if not self._separator or not size or os.pread(descriptor, 1, size - 1) == self._separator:
            return size
        with open(descriptor, "rb", closefd=False) as file:
            end = file.read().rfind(self._separator) + 1
        os.ftruncate(descriptor, end)
        self._say(f"warning: the last entry of '{self.path}' was cut off, and is left out ({size - end} bytes)")
        return end


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
