"""What a command prints, once nobody reads it any more: the terminal is closed, a pipe's reader gone, the log's disk full."""

import io
import sys
from typing import Any, TextIO


class _Lossy(io.FileIO):
    """A descriptor that takes everything; what cannot be written is lost."""

    replaced: TextIO  # closed with its last reference, it would close the descriptor

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def outlive_readers() -> None:
    """From here on no line that this process prints can end it: what it is about to save counts more."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
            raw = _Lossy(stream.fileno(), "w", closefd=False)
        except (OSError, ValueError, AttributeError):  # none, or not of a descriptor
            continue
        raw.replaced = stream
        by_line = stream.line_buffering or stream.write_through
        text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=by_line)
        setattr(sys, name, text)
