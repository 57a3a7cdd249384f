"""Files open for reading, at most so many: checkpoints of a thousand ranks have more than a process may have open."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

_MOST = 64


class OpenFiles:
    """Opens files when they are asked for, and closes those that were not for the longest time."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        """Of the file, until another is asked for.

        Raises:
            OSError: it cannot be opened.
        """
        if path not in self._open:
            if len(self._open) == _MOST:
                self._open.popitem(last=False)[1].close()
            self._open[path] = path.open("rb", buffering=0)
        self._open.move_to_end(path)
        return self._open[path].fileno()
