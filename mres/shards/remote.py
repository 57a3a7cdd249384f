"""A shard set in a remote store: S3, Google Cloud Storage, HTTP, whatever fsspec reads, through a cache on local disk.

Where the store is and who asks: see `mres/shards/driver.py`.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from mres.credentials import refusal
from mres.errors import UserError
from mres.io.json_files import MAX_BYTES
from mres.shards.cache import BlockCache
from mres.shards.daemons import DaemonPool
from mres.shards.driver import Driver
from mres.shards.storage import Block, LocalStorage, Storage, is_remote, join

PREFETCH_THREADS = 8
_Fetch = Callable[[str, Block], None]
# What a process got from the one it was forked from. It is kept and never used: to close those connections here would
# disturb them there.
_inherited: list["_Process"] = []


def default_cache_dir() -> Path:
    """A folder of the user's own, whoever else works on the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mres" / "shards"


@dataclass(frozen=True)
class RemoteOptions:
    """How a remote set is read.

    Attributes:
        cache_dir: a folder on a local disk; processes of a machine share it. Other files in it are left alone.
        cache_limit_bytes: what the cached blocks take up at most, of all sets and processes together.
        timeout_s: for each attempt to fetch something.
        retries: further attempts after a failed one; the pauses between them grow, to 20 s.
    """

    cache_dir: Path = field(default_factory=default_cache_dir)
    cache_limit_bytes: int = 50 * 10**9
    timeout_s: float = 30.0
    retries: int = 5


def open_storage(location: str | Path, options: RemoteOptions | None = None) -> Storage:
    """The storage at a folder or URL; nothing is read yet.

    Raises:
        UserError: a URL with credentials in it, a cache folder that is the set's own, or cannot be used.
    """
    if options is not None:
        _refuse_cache_within(str(location), options.cache_dir)
    if problem := refusal(str(location)):
        raise UserError(problem)
    if not is_remote(location):
        return LocalStorage(str(location))
    return RemoteStorage(str(location), options or RemoteOptions())


def _refuse_cache_within(location: str, cache_dir: Path) -> None:
    is_file_url = location.startswith("file://")
    if is_remote(location) and not is_file_url:
        return
    folder = Path(unquote(urlsplit(location).path) if is_file_url else location).resolve()
    cache = cache_dir.resolve()
    if folder == cache or folder in cache.parents:
        raise UserError(
            f"the cache folder '{cache_dir}' is inside the shard set '{location}'; give the cache a folder of its own"
        )


class RemoteStorage:
    """See `Storage`. Whole blocks are fetched, cached, and handed out in pieces.

    Attributes:
        bytes_fetched, blocks_fetched: what came from the store, in this process.
        cache_hits: reads that needed nothing from it.
        retries: attempts that followed a failed one.

    Raises:
        UserError: the cache folder cannot be used.
    """

    def __init__(self, location: str, options: RemoteOptions) -> None:
        self.location, self.options = location, options
        self._sizes: dict[str, int] = {}
        self._tags: dict[str, str | None] = {}
        self._process: _Process | None = None
        self._reset_counters()

    @cached_property
    def _cache(self) -> BlockCache:
        """Opened by who reads blocks; others, such as `shard.py info`, must not hold it to a limit of their own."""
        return BlockCache(self.options.cache_dir, self.options.cache_limit_bytes)

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        mine = self._mine()
        content = mine.driver.read(join(self.location, name), max_bytes)
        self._count(mine, bytes_fetched=len(content))
        return content

    def size(self, name: str) -> int:
        if name not in self._sizes:
            driver, url = self._mine().driver, join(self.location, name)
            self._sizes[name] = driver.size(url)
            self._tags[name] = driver.tags.get(url)
        return self._sizes[name]

    def read_range(self, name: str, offset: int, size: int, block: Block | None = None) -> bytes:
        end = min(offset + size, self.size(name))
        if end <= offset:
            return b""
        if block is None:
            return self._download(name, (offset, end))
        block = self._within_file(name, block)
        start, size = block[0], end - offset
        assert start <= offset < end <= block[1], f"{offset} to {end} is not in the block {block}"
        url, mine = join(self.location, name), self._mine()
        content = self._cache.read(url, block, offset - start, size)
        if content is not None:
            self._count(mine, cache_hits=1)
            return content
        mine.await_prefetched((name, block))
        content = self._cache.read(url, block, offset - start, size)
        return content if content is not None else self._fetch(name, block)[offset - start :][:size]

    def prefetch(self, ranges: Sequence[tuple[str, Block]]) -> None:
        mine = self._mine()
        for name, block in ranges:
            mine.prefetch((name, block), self._fetch_if_missing)

    def drop(self, name: str, block: Block) -> bool:
        """The bytes may have come damaged over the network, too: they are worth being fetched once more."""
        self._cache.drop(join(self.location, name), self._within_file(name, block))
        return True

    def check_capacity(self, largest_block: int, blocks_in_flight: int) -> None:
        """Checks that the cache has room for `blocks_in_flight`, of all processes of the machine, and one more.

        Raises:
            UserError: it has not.
        """
        self._cache.check_capacity(largest_block, blocks_in_flight)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.pid == os.getpid():
            process.pool.close()
        else:
            _inherited.append(process)

    def __del__(self) -> None:
        if hasattr(self, "_process"):  # else its making failed
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.options)

    def _within_file(self, name: str, block: Block) -> Block:
        return block[0], min(block[1], self.size(name))

    def _fetch_if_missing(self, name: str, block: Block) -> None:
        block = self._within_file(name, block)
        if self._cache.read(join(self.location, name), block, 0, 0) is None:
            self._fetch(name, block)

    def _fetch(self, name: str, block: Block) -> bytes:
        return self._cache.fetch(join(self.location, name), block, lambda: self._download(name, block))

    def _download(self, name: str, block: Block) -> bytes:
        mine = self._mine()
        content = mine.driver.read_range(join(self.location, name), *block, self._tags.get(name))
        self._count(mine, bytes_fetched=len(content), blocks_fetched=1)
        return content

    def _mine(self) -> "_Process":
        """What belongs to this process alone; a fork makes its own and counts from zero."""
        if self._process is None or self._process.pid != os.getpid():
            if self._process is not None:
                _inherited.append(self._process)
                self._reset_counters()
            self._process = _Process(self)
        return self._process

    def _reset_counters(self) -> None:
        self.bytes_fetched = self.blocks_fetched = self.cache_hits = self.retries = 0

    def _count(self, mine: "_Process", **amounts: int) -> None:
        with mine.lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


class _Process:
    """What a storage has of its own in one process: connections, threads, locks."""

    def __init__(self, storage: RemoteStorage) -> None:
        self.pid, self.lock = os.getpid(), Lock()
        options = storage.options
        self.driver = Driver(
            storage.location, options.timeout_s, options.retries, on_retry=lambda: storage._count(self, retries=1)
        )
        self.pool = DaemonPool(PREFETCH_THREADS)
        self._pending: dict[tuple[str, Block], Future] = {}

    def prefetch(self, key: tuple[str, Block], fetch: _Fetch) -> None:
        """Has `fetch(*key)` done by a thread, unless it is being done."""
        with self.lock:
            if key not in self._pending:
                self._pending[key] = self.pool.submit(self._prefetched, key, fetch)

    def await_prefetched(self, key: tuple[str, Block]) -> None:
        """Waits for a block whose prefetching has begun; raises what made it fail."""
        with self.lock:
            future = self._pending.pop(key, None)
        if future is not None and not future.cancel():
            future.result()

    def _prefetched(self, key: tuple[str, Block], fetch: _Fetch) -> None:
        fetch(*key)
        with self.lock:  # one that failed stays, for the read to raise its error
            self._pending.pop(key, None)
