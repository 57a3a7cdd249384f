"""Hashes and parses a shard set again and names every damage."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mres.errors import UserError
from mres.records import RecordError
from mres.shards.check import check_record
from mres.shards.index import record_key
from mres.shards.manifest import MANIFEST_NAME, Manifest, Shard, read_manifest
from mres.shards.reader import ShardSet, parse_record
from mres.shards.remote import RemoteOptions, open_storage
from mres.shards.scan import scan
from mres.shards.storage import Storage, is_remote, join

_PIECE = 8 << 20


def damages(location: str, *, workers: int = 0, remote: RemoteOptions | None = None) -> list[str]:
    """What is wrong with a set, one message each; empty if all is well.

    Every file is hashed, every record parsed and checked against the format, every image decoded. Of a view, the files
    of its parts are.

    Raises:
        UserError: there is no shard set at `location`.
    """
    storage = open_storage(location, remote)
    try:
        storage.size(MANIFEST_NAME)
    except FileNotFoundError:
        read_manifest(storage)  # says what is there instead
    try:
        manifest = read_manifest(storage)
        strays = list(_strays(location, manifest))
        damaged = [message for shard in manifest.shards if (message := _size_damage(storage, manifest, shard))]
        if damaged:
            return [*strays, *damaged]
        shards = ShardSet(location, remote)
        shards.digests_N32  # noqa: B018  a damaged file is named
    except UserError as error:
        return [str(error)]
    return [*strays, *_shard_damages(shards, workers)]


def report_damage(location: str, *, workers: int = 0, remote: RemoteOptions | None = None) -> int:
    """Prints the result of `damages`; returns the exit code, 1 if anything is damaged."""
    found = damages(location, workers=workers, remote=remote)
    for message in found:
        print(f"damaged: {message}")
    if not found:
        print(f"{location}: every hash fits, every record is readable")
    return 1 if found else 0


def _strays(location: str, manifest: Manifest) -> Iterator[str]:
    if is_remote(location) or manifest.is_view:
        return
    listed = {shard.name for shard in manifest.shards}
    for path in sorted(Path(location).glob("shard*")):
        if path.name not in listed:
            yield f"{path}: the manifest does not list this file, so no reader will see it"


def _size_damage(storage: Storage, manifest: Manifest, shard: Shard) -> str | None:
    """A file of another size spoils opening the set, so all of them are named here; a view's parts name theirs."""
    if shard.part is not None:
        return None
    where = join(storage.location, shard.name)
    try:
        size = storage.size(shard.name)
    except OSError as error:
        return f"{where}: cannot be read: {error.strerror or error}"
    return None if size == shard.bytes else f"{where}: has {size} bytes, its manifest says {shard.bytes}"


def _shard_damages(shards: ShardSet, workers: int) -> list[str]:
    def check(number: int, tick: Callable[[], None]) -> list[str]:
        return list(_one_shard(shards, number, tick))

    label = f"verifying {shards.location}"
    checked = scan(check, len(shards.manifest.shards), workers=workers, total=len(shards), label=label)
    return [message for messages in checked for message in messages]


def _one_shard(shards: ShardSet, number: int, tick: Callable[[], None]) -> Iterator[str]:
    shard, damaged = shards.manifest.shards[number], False
    path = shards.shard_path(shard)
    storage = shards.storage_of(shard)
    first = sum(s.records for s in shards.manifest.shards[:number])
    digest = hashlib.sha256()
    for index in range(first, first + shard.records):
        tick()
        row = shards.index_N[index]
        where = f"{path}: {record_key(int(row['key']))}"
        try:
            content = storage.read_range(shard.name, int(row["offset"]), int(row["size"]))
            check_record(parse_record(content, row, where, shards.digest(index)), where)
        except (RecordError, OSError) as error:
            damaged = True
            yield str(error)
    for offset in range(0, shard.bytes, _PIECE):
        digest.update(storage.read_range(shard.name, offset, min(_PIECE, shard.bytes - offset)))
    if digest.hexdigest() != shard.sha256 and not damaged:
        yield f"{path}: its sha256 is not the manifest's, between or after its records (each of them is readable)"
