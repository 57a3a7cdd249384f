"""Hashes and parses a shard set again and names every damage."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.files import file_sha256
from mres.progress import track
from mres.records import RecordError
from mres.shards.index import read_index, record_key, record_span
from mres.shards.manifest import MANIFEST_NAME, Manifest, Shard, read_manifest
from mres.shards.reader import parse_record, pread
from mres.shards.writer import check_image


def damages(folder: Path) -> list[str]:
    """What is wrong with the set in `folder`, one message each; empty if all is well.

    Every file is hashed, every record parsed and checked against the format, every image decoded.

    Raises:
        UserError: there is no shard set at `folder`.
    """
    if not (folder / MANIFEST_NAME).is_file():
        read_manifest(folder)  # says what is there instead
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [str(error)]
    return [*_strays(folder, manifest), *_shard_damages(folder, manifest)]


def report_damage(folder: Path) -> int:
    """Prints the result of `damages`; returns the exit code, 1 if anything is damaged."""
    found = damages(folder)
    for message in found:
        print(f"damaged: {message}")
    if not found:
        print(f"{folder}: every hash fits, every record is readable")
    return 1 if found else 0


def _strays(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for path in sorted(folder.glob("shard-*")):
        if path.name not in listed:
            yield f"{path}: the manifest does not list this file, so no reader will see it"


def _shard_damages(folder: Path, manifest: Manifest) -> Iterator[str]:
    first = 0
    for shard in track(manifest.shards, len(manifest.shards), f"verifying {folder}"):
        try:
            yield from _one_shard(folder, shard, first)
        except OSError as error:
            yield f"{error.filename}: cannot be read: {error.strerror}"
        except UserError as error:
            yield str(error)
        first += shard.records


def _one_shard(folder: Path, shard: Shard, first: int) -> Iterator[str]:
    tar, path = folder / shard.name, folder / shard.index_name
    tar_fits, index_fits = file_sha256(tar) == shard.sha256, file_sha256(path) == shard.index_sha256
    if not index_fits:
        yield f"{path}: its sha256 is not the manifest's; the records of the shard cannot be told apart without it"
    elif (found := _record_damages(tar, read_index(path, path.read_bytes()), first)) or tar_fits:
        yield from found
        return
    if not tar_fits:
        place = ", between or after its records (each of them is readable)" if index_fits else ""
        yield f"{tar}: its sha256 is not the manifest's{place}"


def _record_damages(tar: Path, index_N: np.ndarray, first: int) -> list[str]:
    found = []
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        for position, row in enumerate(index_N, start=first):
            start, end = record_span(row)
            key = record_key(position)
            where = f"{tar}: {key}"
            try:
                check_image(parse_record(pread(descriptor, end - start, start), row, key, where), where)
            except RecordError as error:
                found.append(str(error))
    finally:
        os.close(descriptor)
    return found
