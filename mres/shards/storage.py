"""Where the files of a shard set lie: in a folder, or in a remote store."""

import errno
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mres.errors import UserError
from mres.io.files import read_regular
from mres.io.json_files import MAX_BYTES

# A global shuffle touches all shards evenly, so evicting old descriptors would gain nothing: the first ones stay open,
# shards beyond are opened for each read.
MAX_OPEN = 256

# (start, end) in bytes of a file
Block = tuple[int, int]


class Storage(Protocol):
    """The files of one shard set by name.

    Safe to use after a fork, in threads, and to pickle into spawned workers.

    Attributes:
        location: the folder or URL as the user gave it, for messages.
    """

    location: str

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """All bytes of a small file, of at most so many: the manifest, the index.

        Raises:
            FileNotFoundError: it is not there.
            UserError: it cannot be read.
        """

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it is not there.
            UserError: the store does not answer, or refuses.
        """

    def read_range(self, name: str, offset: int, size: int, block: Block | None = None) -> bytes:
        """The bytes [offset, offset + size) of a file; fewer only at its end.

        `block` is the range around them that is worth fetching at once: a remote storage fetches and caches it as one
        unit. Without it nothing is cached.

        Raises:
            OSError: no such file (FileNotFoundError), a disk that fails.
            UserError: the store does not answer, or refuses.
        """

    def prefetch(self, ranges: Sequence[tuple[str, Block]]) -> None:
        """Tells which (name, block)s are read soon; returns at once. What fails is raised where it is read."""

    def drop(self, name: str, block: Block) -> bool:
        """Forgets the cached bytes of a block that proved damaged; whether reading them once more can help."""

    def check_capacity(self, largest_block: int, blocks_in_flight: int) -> None:
        """Checks that the cache has room for what is in use at once: see `RemoteStorage`. A folder needs none."""

    def close(self) -> None:
        """Closes files and connections; a later read opens them again."""


def is_remote(location: str | Path) -> bool:
    """Whether `location` is a URL ("s3://…", "https://…", "file://…"), not a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(location)) is not None


def join(location: str, name: str) -> str:
    """The path or URL of a file or folder `name`, relative to the folder or URL `location` ("../other" goes up).

    A `name` that is a URL or an absolute path stands for itself.

    Raises:
        UserError: a relative name that leads out of the bucket or host.
    """
    if is_remote(name) or os.path.isabs(name):
        return name
    ascends = ".." in name.split("/")
    if not is_remote(location):
        # The kernel's way: ".." of a link to a folder is beside that folder.
        return os.path.normpath(Path(location).resolve() / name) if ascends else os.path.join(location, name)
    scheme, rest = location.split("://", 1)
    path = f"{rest.rstrip('/')}/{name}"
    if ascends:
        path = posixpath.normpath(path)
        if path.split("/")[0] != rest.split("/")[0]:
            raise UserError(f"'{name}' leads out of '{location}'; give the full URL")
    return f"{scheme}://{path}"


class LocalStorage:
    """A folder. Descriptors are opened lazily, and reads carry their offset: forks and threads may share them."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._descriptors: dict[str, int] = {}

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        path = self._path(name)
        try:
            return read_regular(Path(path), max_bytes)
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, error.strerror, path) from None
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}; check its rights and its disk") from None

    def size(self, name: str) -> int:
        return os.stat(self._path(name)).st_size

    def read_range(self, name: str, offset: int, size: int, block: Block | None = None) -> bytes:
        descriptor = self._descriptors.get(name)
        if descriptor is not None:
            return pread(descriptor, size, offset)
        descriptor = os.open(self._path(name), os.O_RDONLY)
        try:
            return pread(descriptor, size, offset)
        finally:
            full = len(self._descriptors) >= MAX_OPEN
            if full or self._descriptors.setdefault(name, descriptor) != descriptor:  # another thread was first
                os.close(descriptor)

    def prefetch(self, ranges: Sequence[tuple[str, Block]]) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        for name, (start, end) in ranges:
            with suppress(OSError):  # a hint: what is wrong with the file, its reading says
                self.read_range(name, start, 0)
                if name in self._descriptors:
                    os.posix_fadvise(self._descriptors[name], start, end - start, os.POSIX_FADV_WILLNEED)

    def drop(self, name: str, block: Block) -> bool:
        return False

    def check_capacity(self, largest_block: int, blocks_in_flight: int) -> None:
        pass

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location,)

    def _path(self, name: str) -> str:
        return join(self.location, name)


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the file's end (network file systems return less at a time)."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content
