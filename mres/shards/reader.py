"""Random access to a shard set: one `pread` a record, no torch, no webdataset.

Legend: N images of the set.
"""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError
from mres.records import ImageRecord, RecordError, record_from_json
from mres.shards.index import IMAGE_SUFFIXES, TAR_BLOCK, read_index, record_key, record_span
from mres.shards.manifest import Manifest, Shard, read_manifest

# A global shuffle touches all shards evenly, so evicting old descriptors would gain nothing: the first ones stay open,
# shards beyond are opened for each read.
MAX_OPEN = 256
REMEDY = "copy the set again, or build it again"


class ShardSet:
    """The records of a shard folder by position.

    Safe to use after a fork, in threads, and to pickle into spawned workers: descriptors are opened lazily and reads
    carry their offset.

    Attributes:
        manifest: what the set holds.
        num_expressions_N: int32 (N,), expressions of each image; known from the index, no shard is opened.

    Raises:
        UserError: missing path, not a shard set, empty, another version, files that do not fit the manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._descriptors: dict[int, int] = {}
        self.manifest: Manifest = read_manifest(self.folder)
        parts = [_load_index(self.folder, shard) for shard in self.manifest.shards]
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._index_N = np.concatenate(parts)
        if len(self._index_N) != self.manifest.counts.images:
            raise UserError(f"'{self.folder}': the manifest's number of images does not fit its shards; build it again")
        objects_N, parts_N = self._index_N["num_object_expressions"], self._index_N["num_part_expressions"]
        self.num_expressions_N: np.ndarray = (objects_N + parts_N).astype(np.int32)

    def __len__(self) -> int:
        return len(self._index_N)

    @property
    def fingerprint(self) -> str:
        """The manifest's hash: stream states and checkpoints refer to the set by it."""
        return self.manifest.sha256

    def name(self, index: int) -> str:
        """Where record `index` lies, for messages: "folder/shard-000003.tar: 00000123"."""
        return f"{self.folder / self.manifest.shards[self._shard_of(index)].name}: {record_key(index)}"

    def read(self, index: int) -> ImageRecord:
        """Record `index` (0 … len-1), its fields checked, its image not decoded.

        Raises:
            IndexError: no such position.
            RecordError: naming shard and key: truncated or damaged bytes, bad JSON, a field out of the format.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder} has records 0 to {len(self) - 1}, not {index}")
        shard, row, where = self._shard_of(index), self._index_N[index], self.name(index)
        start, end = record_span(row)
        try:
            block = self._pread(shard, end - start, start)
        except OSError as error:
            raise RecordError(f"{where}: cannot be read: {error.strerror or error}") from None
        return parse_record(block, row, record_key(index), where)

    def close(self) -> None:
        """Closes the descriptors; a later `read` opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        descriptor = self._descriptors.get(shard)
        if descriptor is not None:
            return pread(descriptor, size, offset)
        descriptor = os.open(self.folder / self.manifest.shards[shard].name, os.O_RDONLY)
        try:
            return pread(descriptor, size, offset)
        finally:
            full = len(self._descriptors) >= MAX_OPEN
            if full or self._descriptors.setdefault(shard, descriptor) != descriptor:  # another thread was first
                os.close(descriptor)


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the file's end (network file systems return less at a time)."""
    block = os.pread(descriptor, size, offset)
    while len(block) < size and (more := os.pread(descriptor, size - len(block), offset + len(block))):
        block += more
    return block


def parse_record(block: bytes, row: np.void, key: str, where: str) -> ImageRecord:
    """The record in `block`, the bytes of its span (`record_span`) in its tar.

    Raises:
        RecordError: naming `where`: truncated, other bytes than were written, not the record's members, bad JSON, a
            field out of the format.
    """
    start, end = record_span(row)
    if len(block) < end - start:
        raise RecordError(f"{where}: truncated: {len(block)} of {end - start} bytes are there; {REMEDY}")
    if zlib.crc32(block) != row["crc32"]:
        raise RecordError(
            f"{where}: damaged: the checksum of its bytes is not the one they were written with; {REMEDY}"
        )
    names, content = {}, {}
    for member in ("image", "json"):
        at = int(row[f"{member}_offset"]) - start
        names[member] = block[at - TAR_BLOCK : at - TAR_BLOCK + 100].split(b"\0", 1)[0].decode("ascii", "replace")
        content[member] = block[at : at + int(row[f"{member}_size"])]
    return record_from_json(_parse_json(content["json"], names, key, where), content["image"], where)


def _load_index(folder: Path, shard: Shard) -> np.ndarray:
    tar, path = folder / shard.name, folder / shard.index_name
    try:
        size, content = tar.stat().st_size, path.read_bytes()
    except OSError as error:
        raise UserError(f"'{error.filename}' of the shard set cannot be read: {error.strerror}; {REMEDY}") from None
    if size != shard.bytes:
        raise UserError(f"'{tar}' has {size} bytes, its manifest says {shard.bytes}; {REMEDY}")
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise UserError(f"'{path}' is not the index that its manifest describes (sha256); {REMEDY}")
    index_N = read_index(path, content)
    if len(index_N) != shard.records:
        raise UserError(f"'{path}' has {len(index_N)} records, its manifest says {shard.records}; {REMEDY}")
    return index_N


def _parse_json(content: bytes, names: dict[str, str], key: str, where: str) -> dict[str, Any]:
    images = [f"{key}.{suffix}" for suffix in IMAGE_SUFFIXES]
    if names["json"] != f"{key}.json" or names["image"] not in images:
        raise RecordError(f"{where}: expected the members {key}.json and {images[0]}, found {sorted(names.values())}")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: {key}.json is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{where}: {key}.json: expected a JSON object, found {type(value).__name__}")
    if value.get("image") != names["image"]:
        raise RecordError(f"{where}: field 'image': found {value.get('image')!r}, expected '{names['image']}'")
    return value
