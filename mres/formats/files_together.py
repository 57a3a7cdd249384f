"""Files of torch.save that grow together, as those of all ranks do, and are brought to the disk together."""

from __future__ import annotations

import resource
from contextlib import ExitStack, closing
from pathlib import Path

from mres.formats.folder import CheckpointError
from mres.formats.torch_archive_writer import TorchArchiveWriter
from mres.formats.workspace import NOTE_EVERY_BYTES, AppendedFile, Workspace

# What is open beside them: the source, libraries.
_OTHER_FILES = 128
# As waiting for a file to be on the disk takes about as long as writing so much.
_BYTES_A_SYNC = 1 << 20


def allow_open_files(count: int) -> None:
    """Every rank's files are open at once, more than many shells allow by default.

    Raises:
        CheckpointError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise CheckpointError(
            f"files for {count // 2} ranks are {count} open files, and the system allows {hard} (ulimit -Hn); raise it, or "
            "convert for fewer ranks (--world-size)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class FilesTogether:
    """The files of a tag's folder, open until `stack` ends; what they hold is noted all at once."""

    def __init__(self, work: Workspace, tag: str, stack: ExitStack) -> None:
        self._work, self._tag, self._stack = work, tag, stack
        self._open: dict[str, tuple[AppendedFile, TorchArchiveWriter]] = {}
        self._noted = 0

    def begin(self, name: str) -> TorchArchiveWriter:
        path = f"{self._tag}/{name}"
        file = self._stack.enter_context(closing(self._work.append_to(path)))
        writer = TorchArchiveWriter(file, Path(name).stem, self._work.states.get(path))
        self._open[path] = file, writer
        self._noted += file.tell()
        return writer

    def note_if_due(self) -> None:
        """After so much that a kill should not cost it again, and that bringing every file to the disk is worth it."""
        written = sum(file.tell() for file, _ in self._open.values()) - self._noted
        if written >= max(NOTE_EVERY_BYTES, _BYTES_A_SYNC * len(self._open)):
            self.note()

    def note(self) -> None:
        self._work.note_states({path: (file, writer.state) for path, (file, writer) in self._open.items()})
        self._noted = sum(file.tell() for file, _ in self._open.values())
