"""Writes image records as a shard set: WebDataset tars, an index beside each, a manifest; published by one rename."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError
from mres.files import file_sha256, fsync, publish_folder
from mres.records import GRANULARITIES, ImageRecord, RecordError, record_from_json, record_to_json
from mres.shards.index import index_tar, record_key, write_index
from mres.shards.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    Shard,
    Tally,
    is_shard_set,
    make_manifest,
)

_SUFFIXES = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class WriteOptions:
    """How a set is written.

    `max_bad_fraction` is the share of the records that may be broken: those are listed in `quarantine.jsonl` and left
    out. At 0 the first one stops the build with its message.
    """

    images_per_shard: int = 1000
    max_bad_fraction: float = 0.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_shard <= 10_000_000:
            raise UserError(f"images per shard: {self.images_per_shard}; allowed: 1 to 10000000")
        if not 0 <= self.max_bad_fraction < 1:
            raise UserError(f"max bad fraction: {self.max_bad_fraction}; allowed: 0 to below 1")


def write_shards(
    records: Iterable[ImageRecord | RecordError],
    out: Path,
    *,
    source: dict[str, Any],
    name: str,
    total: int,
    options: WriteOptions | None = None,
) -> Manifest:
    """Writes `records` into the new folder `out`; nothing is left behind if it fails or is interrupted.

    Each record is checked against the format and its image is decoded, so that what was written can be trained on. The
    same records give the same bytes.

    Args:
        records: a `RecordError` in place of a record is a bad one that the source could not read.
        out: the folder to make.
        source: what the records were made from, for the manifest (JSON values).
        name: what messages about a record call the source.
        total: how many records (bad ones included) will come; the budget for bad ones refers to it.
        options: see `WriteOptions`.

    Raises:
        UserError: `out` is in use, no good record came, more bad ones than allowed, the disk is full.
    """
    options = options or WriteOptions()
    with _published(out, overwrite=options.overwrite) as folder:
        try:
            good = _Checked(records, name, total, options.max_bad_fraction)
            shards, tally = _write_all(good, folder, options.images_per_shard)
            good.write_quarantine(folder)
            manifest = make_manifest(
                source,
                {"images_per_shard": options.images_per_shard, "max_bad_fraction": options.max_bad_fraction},
                tally.counts(len(good.errors)),
                shards,
            )
            manifest.write(folder / MANIFEST_NAME)
        except OSError as error:
            raise UserError(f"writing '{out}' failed: {error.strerror or error} ({error.filename or folder})") from None
    return manifest


class _Checked:
    """The good records of an iterable; the bad ones are kept in `errors` as far as the budget goes."""

    def __init__(
        self, records: Iterable[ImageRecord | RecordError], name: str, total: int, max_bad_fraction: float
    ) -> None:
        self.errors: list[RecordError] = []
        self._records, self._name, self._total, self._fraction = records, name, total, max_bad_fraction
        self._ids: set[str] = set()

    def __iter__(self) -> Iterator[tuple[ImageRecord, str]]:
        """Yields (record, suffix of its image)."""
        for item in self._records:
            try:
                if isinstance(item, RecordError):
                    raise item
                yield item, self._check(item)
            except RecordError as error:
                if self._fraction == 0:
                    raise
                self.errors.append(error)
                self._keep_budget(self._total)
        self._keep_budget(len(self.errors) + len(self._ids))  # fewer than announced may have come

    def _check(self, record: ImageRecord) -> str:
        if record.id in self._ids:
            raise RecordError(f"{self._name}: record {record.id!r}: its id occurs twice; ids must be unique")
        record_from_json(record_to_json(record, "image"), record.image, self._name)
        suffix = check_image(record, self._name)
        self._ids.add(record.id)
        return suffix

    def _keep_budget(self, total: int) -> None:
        if len(self.errors) <= self._fraction * total:
            return
        shown = "".join(f"\n  {error}" for error in self.errors[:5])
        raise UserError(
            f"too many bad records: at least {len(self.errors)} of {total}, allowed is a share of {self._fraction:g} "
            f"(--max-bad-fraction); the first:{shown}"
        )

    def write_quarantine(self, folder: Path) -> None:
        """Lists the bad records in the set."""
        if self.errors:
            lines = [json.dumps({"error": str(error)}, ensure_ascii=False) + "\n" for error in self.errors]
            (folder / QUARANTINE_NAME).write_text("".join(lines), encoding="utf-8")


def check_image(record: ImageRecord, where: str) -> str:
    """Decodes the record's image once; returns the suffix of its format.

    Raises:
        RecordError: naming `where` and the record: not JPEG or PNG, damaged, of another size than the record says.
    """
    from PIL import Image

    where = f"{where}: record {record.id!r}: image"
    try:
        with Image.open(io.BytesIO(record.image)) as image:
            suffix, size = _SUFFIXES.get(image.format or ""), image.size
            if suffix is None:
                raise RecordError(f"{where}: the format is {image.format}, allowed: JPEG, PNG")
            if size != (record.width, record.height):
                raise RecordError(
                    f"{where}: it has {size[0]}x{size[1]} pixels, the record says {record.width}x{record.height}"
                )
            image.load()
    except RecordError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, DecompressionBombError …
        raise RecordError(f"{where}: cannot be decoded: {error}") from None
    return suffix


def _write_all(
    records: Iterable[tuple[ImageRecord, str]], folder: Path, images_per_shard: int
) -> tuple[list[Shard], Tally]:
    shards: list[Shard] = []
    tally = Tally()
    remaining = iter(records)
    # A shard is opened only once there is a record for it.
    while (head := next(remaining, None)) is not None:
        tar = _Tar(folder / f"shard-{len(shards):06d}.tar", tally.images)
        with closing(tar):
            for record, suffix in chain([head], islice(remaining, images_per_shard - 1)):
                tar.add(record, suffix)
                tally.add(record)
        shards.append(tar.shard())
    if not shards:
        raise UserError("no good record came from the source, so there is nothing to write")
    return shards, tally


class _Tar:
    """One shard while it is written."""

    def __init__(self, path: Path, first: int) -> None:
        from webdataset import TarWriter  # takes seconds

        self.path, self.first = path, first
        self._expressions: list[tuple[int, int]] = []
        self._file = path.open("wb")
        # Nothing of the machine or the moment enters the bytes: the same records give the same hash.
        self._writer = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    @property
    def num_records(self) -> int:
        return len(self._expressions)

    def add(self, record: ImageRecord, suffix: str) -> None:
        key = record_key(self.first + self.num_records)
        value = record_to_json(record, f"{key}.{suffix}")
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        self._writer.write({"__key__": key, suffix: record.image, "json": text.encode("utf-8")})
        by_granularity = [
            sum(len(t.expressions) for t in record.targets if t.granularity == granularity)
            for granularity in GRANULARITIES
        ]
        self._expressions.append((by_granularity[0], by_granularity[1]))

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    def shard(self) -> Shard:
        """Indexes and hashes the closed tar."""
        index_N = index_tar(self.path, self.first, np.array(self._expressions, dtype=np.int32))
        index_path = self.path.with_suffix(".index.npy")
        write_index(index_path, index_N)
        return Shard(
            name=self.path.name,
            bytes=self.path.stat().st_size,
            sha256=file_sha256(self.path),
            records=self.num_records,
            index_sha256=file_sha256(index_path),
        )


@contextmanager
def _published(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder `<out>.incomplete` to fill, which becomes `out` at the end or vanishes when the body raises."""
    out = out.resolve()
    _check_free(out, overwrite=overwrite)
    folder = out.with_name(out.name + ".incomplete")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder '{folder}': {error.strerror}") from None
    try:
        yield folder
        for path in [*folder.iterdir(), folder]:
            fsync(path)
        publish_folder(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"'{out}' exists and is not empty; give another folder, or --overwrite to replace it")
    if not is_shard_set(out):
        raise UserError(f"'{out}' is not a shard set, so --overwrite does not remove it; give another folder")
