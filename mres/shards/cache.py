"""Blocks of remote files on the local disk: bounded, shared by the processes of a machine, safe against being killed.

    <cache_dir>/<sha256 of the file's URL>/<start>-<end>.block
    <cache_dir>/.mres-cache/ledger      how many bytes the blocks have; its lock is held while they change
    <cache_dir>/.mres-cache/incoming    the block that is being written, by whoever holds that lock
    <cache_dir>/.mres-cache/locks/00 …  who holds a block's lock fetches it, others wait for it and then find it

All of it is the user's own: folders of others, links and pipes are refused or passed over, for who else can write there
would decide what is trained on.

The kernel frees the locks of a process that dies, whatever it was doing. What it may leave is a ledger that says too
much, and an unfinished `incoming`: both are put right when blocks are evicted, which counts what is there. A block has
the length that its name says, or it is not one. Whatever else lies in `cache_dir` is not the cache's: it is neither
counted nor touched.
"""

import errno
import hashlib
import math
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mres.errors import UserError
from mres.io.locks import locked
from mres.shards.storage import Block, pread

_FOLDER = re.compile(r"[0-9a-f]{64}")
_BLOCK = re.compile(r"\d+-\d+\.block")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OWN = ".mres-cache"
_WRITES = 3
# Where a disk has no room at all, a few blocks stay in memory: a block's records are mostly read one after another.
_BLOCKS_IN_MEMORY = 8


class BlockCache:
    """The cache in the folder `folder`, of at most `limit_bytes` of blocks; the oldest are evicted for new ones.

    Safe in threads and after a fork. Processes that share a folder keep to the same limit if they are given the same.

    Raises:
        UserError: a folder that cannot be written to, at any time, or that belongs to another user.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit = folder, limit_bytes
        self._warned = False
        self._in_memory: deque[tuple[Path, bytes]] = deque(maxlen=_BLOCKS_IN_MEMORY)
        self._make_folders()
        with self._ledger() as ledger:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            _write_total(ledger, self._evict(limit_bytes))

    def read(self, url: str, block: Block, offset: int, size: int) -> bytes | None:
        """`size` bytes from `offset` within a block; None if it is not there."""
        path, length = self._path(url, block), block[1] - block[0]
        descriptor = _open_own(path)
        if descriptor is None:
            content = next((content for kept, content in tuple(self._in_memory) if kept == path), None)
            return None if content is None else content[offset : offset + size]
        try:
            return pread(descriptor, size, offset) if os.fstat(descriptor).st_size == length else None
        except OSError:  # a disk that fails: as good as not there
            return None
        finally:
            os.close(descriptor)

    def fetch(self, url: str, block: Block, download: Callable[[], bytes]) -> bytes:
        """All bytes of a block: `download()`ed, unless another process or thread has done so meanwhile."""
        path, length = self._path(url, block), block[1] - block[0]
        if length > self._limit:
            raise UserError(
                f"a block of '{url}' has {length} bytes and the cache in '{self.folder}' a limit of {self._limit}; "
                "raise the limit (data.cache_limit_gb)"
            )
        with self._lock(path):
            content = self.read(url, block, 0, length)
            if content is None:
                content = download()
                assert len(content) == length, f"{len(content)} bytes of a block of {length}"
                if not self._store(path, content):
                    self._in_memory.append((path, content))
        return content

    def drop(self, url: str, block: Block) -> None:
        """Forgets a block."""
        path = self._path(url, block)
        for kept in [kept for kept in tuple(self._in_memory) if kept[0] == path]:
            with suppress(ValueError):  # another thread was first
                self._in_memory.remove(kept)
        with self._ledger() as ledger, suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            _write_total(ledger, max(0, self._total(ledger) - size))

    def check_capacity(self, largest_block: int, blocks_in_flight: int) -> None:
        """Checks that the blocks in use at once, by all processes of the machine, and one more fit.

        Raises:
            UserError: they do not: they would evict each other before they are read.
        """
        needed = (blocks_in_flight + 1) * largest_block
        if needed > self._limit:
            raise UserError(
                f"the cache in '{self.folder}' has a limit of {self._limit} bytes, but {blocks_in_flight} blocks of up "
                f"to {largest_block} bytes are in use at once, and one more is fetched: raise the limit "
                f"(data.cache_limit_gb) to at least {math.ceil(needed / 1e7) / 100:g} GB ({needed} bytes), or lower data.shuffle_window"
            )

    def _make_folders(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (owner := self.folder.stat().st_uid) != os.geteuid():  # a link to a folder of one's own will do
                raise PermissionError(errno.EACCES, f"it belongs to the user {owner}")
            _make_own(self.folder / _OWN)
        except OSError as error:
            raise self._unusable(error) from None

    def _path(self, url: str, block: Block) -> Path:
        return self.folder / hashlib.sha256(url.encode()).hexdigest() / f"{block[0]}-{block[1]}.block"

    def _store(self, path: Path, content: bytes) -> bool:
        """Writes a block, evicting others as needed; whether the disk had room for it."""
        with self._ledger() as ledger:
            total, room = self._total(ledger), self._limit - len(content)
            if total > room:
                total = self._evict(min(room, self._limit * 9 // 10))  # some more, so as not to count every time
            for _ in range(_WRITES):
                try:
                    _write_total(ledger, total + len(content))  # first: killed in between, it says too much
                    self._write(path, content)
                    return True
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    problem = error
                total = self._evict(max(0, total - len(content)))
                with suppress(OSError):
                    _write_total(ledger, total)
        self._warn_of(problem)
        return False

    def _write(self, path: Path, content: bytes) -> None:
        """No fsync: what a power failure leaves of a block has another length, or fails its records' checksums."""
        incoming = self.folder / _OWN / "incoming"
        incoming.write_bytes(content)
        _make_own(path.parent)
        incoming.replace(path)

    def _evict(self, limit: int) -> int:
        """Removes the oldest blocks until the others have at most `limit` bytes; returns how many they have."""
        (self.folder / _OWN / "incoming").unlink(missing_ok=True)
        blocks = sorted(self._blocks())
        total = sum(size for _, size, _ in blocks)
        for _, size, path in blocks:
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size
            with suppress(OSError):  # others are in it
                path.parent.rmdir()
        return total

    def _blocks(self) -> Iterator[tuple[int, int, Path]]:
        """(time when it was fetched, bytes, path) of every block."""
        for folder in os.scandir(self.folder):
            if not (_FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False)):
                continue
            for file in os.scandir(folder):
                if _BLOCK.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # a user cleans up
                        found = file.stat(follow_symlinks=False)
                        yield found.st_mtime_ns, found.st_size, Path(file.path)

    def _total(self, ledger: int) -> int:
        text = os.pread(ledger, 32, 0)
        return int(text) if text.strip().isdigit() else sum(size for _, size, _ in self._blocks())

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """Held while blocks come and go."""
        try:
            with locked(self.folder / _OWN / "ledger") as descriptor:
                yield descriptor
        except OSError as error:
            raise self._unusable(error) from None

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """Held by who fetches a block; what goes wrong with the fetching is not the cache's."""
        number = hashlib.sha256(os.fsencode(path)).hexdigest()[:2]
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / _OWN / "locks" / number))
            except OSError as error:
                raise self._unusable(error) from None
            yield

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"the cache folder '{self.folder}' cannot be used: {error.strerror}; give one of your own on a local disk "
            "(data.cache_dir)"
        )

    def _warn_of(self, problem: OSError) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"warning: no room for the cache in '{self.folder}' ({problem.strerror}): remote data stay in memory "
                "and are fetched again and again; free some space, or lower the cache's limit",
                file=sys.stderr,
                flush=True,
            )


def _make_own(folder: Path) -> None:
    """A folder of the cache's own; only its user may look into it.

    Raises:
        OSError: it cannot be made, or something else is called so.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, f"'{folder}' in it is a link, or of another user")
    if stat.S_IMODE(found.st_mode) & 0o077:  # an earlier version's
        folder.chmod(0o700)


def _open_own(path: Path) -> int | None:
    """A block's file; None, if there is none, or a link, a pipe or another user's file or folder in its place."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        found, me = os.fstat(descriptor), os.geteuid()
        if stat.S_ISREG(found.st_mode) and found.st_uid == me == os.fstat(folder).st_uid:
            return descriptor
        os.close(descriptor)
    except OSError:
        pass
    finally:
        os.close(folder)
    return None


def _write_total(ledger: int, total: int) -> None:
    os.pwrite(ledger, b"%020d\n" % total, 0)
