"""Random access to a shard set, local or remote: one read a record, no torch, no webdataset, no streaming.

Legend: N images of the set.
"""

import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError
from mres.io.files import file_sha256
from mres.record_json import record_as_written
from mres.records import ImageRecord, RecordError
from mres.shards.digests import DIGESTS_NAME
from mres.shards.index import INDEX_NAME, load_array, load_index, record_key, stray_row
from mres.shards.manifest import IndexFile, Manifest, Shard, read_manifest
from mres.shards.remote import RemoteOptions, open_storage
from mres.shards.storage import Block, Storage, is_remote, join

REMEDY = "copy the set again, or build it again"
# Records of a block: what is fetched from a store at once, and what stays together when a stream is shuffled.
BLOCK_RECORDS = 64
# A store answers in tens of milliseconds, and a set may have thousands of shards.
_ASKED_AT_ONCE = 16


class ShardSet:
    """The records of a shard set by position.

    Safe to use after a fork, in threads, and to pickle into spawned workers: files and connections are opened lazily,
    by each process for itself. What it holds in memory does not grow with the number of targets, and the index is
    mapped: processes of a machine share it.

    Attributes:
        manifest: what the set holds.
        location: the folder or URL, as it was given.
        storages: what its bytes come from: its own folder, then those of its parts.
        index_N: the index itself, of `INDEX_DTYPE`; not to be written to.
        block_starts: int64, positions of the first records of its blocks (runs of records of one shard).

    Raises:
        UserError: missing path, not a shard set, empty, another version, files that do not fit the manifest, a store
            that refuses.
    """

    def __init__(self, location: str | Path, remote: RemoteOptions | None = None) -> None:
        self.location, self._remote = str(location), remote
        own = open_storage(self.location, remote)
        self.manifest: Manifest = read_manifest(own)
        self.index_N = load_index(_npy(own, INDEX_NAME, self.manifest.index), join(own.location, INDEX_NAME))
        self.storages: list[Storage] = [own, *self._open_parts()]
        self._starts = np.cumsum([0, *(shard.records for shard in self.manifest.shards)])
        if not len(self.index_N) == self._starts[-1] == self.manifest.counts.images:
            raise UserError(f"'{self.location}': the manifest's number of images does not fit its index; {REMEDY}")
        row = stray_row(self.index_N, [(shard.bytes, shard.records) for shard in self.manifest.shards])
        if row is not None:
            raise UserError(f"'{self.location}': row {row} of its index does not lie in its shard; {REMEDY}")
        self._is_foreign = any(is_remote(storage.location) for storage in self.storages)
        if self._is_foreign and self.digests_N32 is None:
            _warn_of_old(self.location)
        with ThreadPoolExecutor(_ASKED_AT_ONCE if is_remote(self.location) else 1) as pool:
            list(pool.map(lambda shard: _check_size(self.storage_of(shard), shard), self.manifest.shards))
        self.block_starts: np.ndarray = np.concatenate(
            [np.arange(a, b, BLOCK_RECORDS) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]
        )

    def _open_parts(self) -> Iterable[Storage]:
        """The storages of a view's parts, each still the set that the view was made of."""
        for part in self.manifest.parts:
            storage = open_storage(join(self.location, part.folder), self._remote)
            found = read_manifest(storage).sha256
            if found != part.sha256:
                raise UserError(
                    f"'{self.location}' is a view of '{storage.location}', which is another set now (its fingerprint is "
                    f"{found[:12]}…, expected {part.sha256[:12]}…); make the view again"
                )
            yield storage

    def __len__(self) -> int:
        return len(self.index_N)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self._remote)

    @property
    def fingerprint(self) -> str:
        """The manifest's hash: stream states and checkpoints refer to the set by it."""
        return self.manifest.sha256

    @property
    def num_expressions_N(self) -> np.ndarray:
        """int32 (N,), expressions of each image; known from the index, no shard is opened."""
        total_N: np.ndarray = self.index_N["num_object_expressions"] + self.index_N["num_part_expressions"]
        return total_N

    def shard_path(self, shard: Shard) -> str:
        """Where a shard of the manifest lies, for messages."""
        return join(self.storage_of(shard).location, shard.name)

    def name(self, index: int) -> str:
        """Where record `index` lies, for messages: "folder/shard-000003.tar: 00000123"."""
        row = self.index_N[index]
        return f"{self.shard_path(self.manifest.shards[int(row['shard'])])}: {record_key(int(row['key']))}"

    @cached_property
    def digests_N32(self) -> np.ndarray | None:
        """The SHA-256 of each record, uint8; None for a set of an earlier version, which has CRCs alone."""
        expected, own = self.manifest.digests, self.storages[0]
        if expected is None:
            return None
        where = join(own.location, DIGESTS_NAME)
        found_N32 = load_array(_npy(own, DIGESTS_NAME, expected), where, np.dtype(np.uint8), (32,))
        if len(found_N32) != len(self.index_N):
            raise UserError(f"'{where}' has {len(found_N32)} records, the index has {len(self.index_N)}; {REMEDY}")
        return found_N32

    def read(self, index: int) -> ImageRecord:
        """Record `index` (0 … len-1), its bytes those that were checked when they were written; no image is decoded.

        Of a folder, a CRC tells; what a store or its cache gave is held to the record's SHA-256.

        Raises:
            IndexError: no such position.
            RecordError: naming shard and key: truncated or damaged bytes, not a record.
            UserError: a store that does not answer, or refuses.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.location} has records 0 to {len(self) - 1}, not {index}")
        row, where = self.index_N[index], self.name(index)
        shard, block = self._place(index)
        span = (int(row["offset"]), int(row["size"]))
        digest = self.digest(index) if self._is_foreign else None
        content = self._bytes(shard, block, *span, where)
        try:
            return parse_record(content, row, where, digest)
        except RecordError:
            if not self.storage_of(shard).drop(shard.name, block):
                raise
        # The cache's bytes were damaged: they are fetched once more.
        return parse_record(self._bytes(shard, block, *span, where), row, where, digest)

    def annotations(self, index: int) -> ImageRecord:
        """Record `index` without its image (`image` is empty).

        Of a folder only the JSON is read, and no checksum covers it alone; what comes from a store is read as a whole.

        Raises:
            RecordError: not a record.
        """
        if self._is_foreign:
            return replace(self.read(index), image=b"")
        row, where = self.index_N[index], self.name(index)
        shard, block = self._place(index)
        start = int(row["offset"]) + int(row["json_offset"])
        return _record(self._bytes(shard, block, start, int(row["json_size"]), where), b"", where)

    def digest(self, index: int) -> bytes | None:
        """The SHA-256 of record `index`, where the set has it."""
        return None if self.digests_N32 is None else self.digests_N32[index].tobytes()

    def prefetch(self, indices: Iterable[int]) -> None:
        """Tells the storage which records are read next."""
        by_storage: dict[int, list[tuple[str, Block]]] = {}
        for index in indices:
            shard, block = self._place(index)
            by_storage.setdefault(_part(shard), []).append((shard.name, block))
        for part, ranges in by_storage.items():
            self.storages[part].prefetch(list(dict.fromkeys(ranges)))

    def largest_block(self) -> int:
        """Bytes of the largest block: what a cache must have room for, several times."""
        last_N = np.append(self.block_starts[1:], len(self)) - 1
        ends = self.index_N["offset"][last_N] + self.index_N["size"][last_N]
        return int((ends - self.index_N["offset"][self.block_starts]).max())

    def close(self) -> None:
        """Closes files and connections; a later `read` opens them again."""
        for storage in self.storages:
            storage.close()

    def storage_of(self, shard: Shard) -> Storage:
        """What a shard of the manifest is read from."""
        return self.storages[_part(shard)]

    def _place(self, index: int) -> tuple[Shard, Block]:
        """The shard of a record and the byte range of its block."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        first = index - (index - int(self._starts[number])) % BLOCK_RECORDS
        last = self.index_N[min(first + BLOCK_RECORDS, int(self._starts[number + 1])) - 1]
        block = (int(self.index_N["offset"][first]), int(last["offset"]) + int(last["size"]))
        return self.manifest.shards[number], block

    def _bytes(self, shard: Shard, block: Block, offset: int, size: int, where: str) -> bytes:
        try:
            return self.storage_of(shard).read_range(shard.name, offset, size, block)
        except OSError as error:
            raise RecordError(f"{where}: cannot be read: {error.strerror or error}") from None


def _part(shard: Shard) -> int:
    return 0 if shard.part is None else shard.part + 1


def parse_record(content: bytes, row: np.void, where: str, digest: bytes | None = None) -> ImageRecord:
    """The record in `content`, the bytes of its span, whose SHA-256 is `digest`.

    Raises:
        RecordError: naming `where`: truncated, other bytes than were written, not a record.
    """
    if len(content) < row["size"]:
        raise RecordError(f"{where}: truncated: {len(content)} of {row['size']} bytes are there; {REMEDY}")
    if zlib.crc32(content) != row["crc32"]:
        raise RecordError(
            f"{where}: damaged: the checksum of its bytes is not the one they were written with; {REMEDY}"
        )
    if digest is not None and hashlib.sha256(content).digest() != digest:
        raise RecordError(
            f"{where}: forged: its bytes fit its CRC, but are not those that were written (SHA-256); look into who can "
            f"write to the store and the cache; {REMEDY}"
        )
    text, image = (
        content[int(row[f"{member}_offset"]) :][: int(row[f"{member}_size"])] for member in ("json", "image")
    )
    return _record(text, image, where)


def _record(text: bytes, image: bytes, where: str) -> ImageRecord:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error}); {REMEDY}") from None
    return record_as_written(value, image, where)


def _npy(storage: Storage, name: str, expected: IndexFile) -> Path | io.BytesIO:
    """A file that the manifest describes: where it lies, or its content, if that is in a store."""
    where = join(storage.location, name)
    source: Path | io.BytesIO = Path(where)
    try:
        if is_remote(storage.location):
            content = storage.read(name, expected.bytes)
            source, size, sha256 = io.BytesIO(content), len(content), hashlib.sha256(content).hexdigest()
        else:
            size, sha256 = storage.size(name), file_sha256(Path(where))
    except OSError as error:
        raise UserError(f"'{where}' of the shard set cannot be read: {error.strerror or error}; {REMEDY}") from None
    if (size, sha256) != (expected.bytes, expected.sha256):
        raise UserError(f"'{where}' is not the index that its manifest describes ({size} bytes, sha256); {REMEDY}")
    return source


def _warn_of_old(location: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(
            f"warning: '{location}' was built without {DIGESTS_NAME}: what the store and the cache give is checked by CRC "
            "alone, which does not tell forged records; build it again with this version",
            file=sys.stderr,
            flush=True,
        )


def _check_size(storage: Storage, shard: Shard) -> None:
    where = join(storage.location, shard.name)
    try:
        size = storage.size(shard.name)
    except OSError as error:
        raise UserError(f"'{where}' of the shard set cannot be read: {error.strerror or error}; {REMEDY}") from None
    if size != shard.bytes:
        raise UserError(f"'{where}' has {size} bytes, its manifest says {shard.bytes}; {REMEDY}")
