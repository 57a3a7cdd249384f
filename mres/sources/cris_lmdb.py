"""CRIS's LMDB (one file a split, images and masks in it; ETRIS and DETRIS write it too) to image records."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mres.errors import UserError, install
from mres.io.progress import track
from mres.records import ImageRecord, RecordError, Rle
from mres.sources.cris_tables import Picture, Segment, check_count, make_record, pictures, read_segment
from mres.sources.legacy_arrow import is_legacy_arrow, loads
from mres.sources.mask_files import read_mask
from mres.sources.reading import add_paths, name_of
from mres.sources.refer_counts import published_check
from mres.sources.safe_pickle import loads_plain
from mres.sources.source import RecordSource

if TYPE_CHECKING:
    import lmdb

_KEYS, _LENGTH = b"__keys__", b"__len__"


def cris_lmdb(lmdb: Path, *, split: str | None = None) -> RecordSource:
    """The image records of one LMDB. Every value is read once to find the images that they belong to.

    Args:
        lmdb: the LMDB file (or its folder, where it was written as one).
        split: what the records are labelled as; None: the name of the file.

    Raises:
        UserError: no such file, no LMDB, not of this form, or the package lmdb is missing. What is wrong with one value
            comes out of the iteration as a `RecordError`, first.
    """
    path, notes = lmdb, Counter[str]()
    segments, errors = [], []
    digest = hashlib.sha256()
    with _reading(path) as transaction:
        keys = _keys(transaction, path, notes)
        for number, key in enumerate(track(keys, len(keys), f"reading {path.name}")):
            content = _get(transaction, key)
            assert content is not None  # `_keys` has looked
            digest.update(len(content).to_bytes(8, "little") + content)
            try:
                segments.append(_segment(number, content, _where(path, key), notes))
            except RecordError as error:
                errors.append(error)
    found, split = pictures(segments, path, notes), split or path.stem

    refused: list[str] = []

    def make(number: int) -> ImageRecord:
        return _record(found[number], path, keys, split, notes, refused)

    description = {
        "format": "cris-lmdb",
        "lmdb": name_of(path),
        "values_sha256": digest.hexdigest(),
        "split": split,
    }
    check_kept = published_check(path, notes)
    return RecordSource(str(path), len(found), make, description, notes, errors, check_kept=check_kept, refused=refused)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--lmdb", "FILE", "the LMDB of a split, <data set>/<split>.lmdb"))
    parser.add_argument("--split", metavar="NAME", help="what the records are labelled as; the file's name by default")


@contextmanager
def _reading(path: Path) -> "Iterator[lmdb.Transaction]":
    """The LMDB, opened for as long as one call needs it: an open one must not be taken along into a forked process."""
    try:
        import lmdb
    except ImportError:
        raise UserError(f"reading an LMDB needs the package lmdb: {install('lmdb')}") from None
    if not path.exists():
        raise UserError(f"no LMDB at '{path}' (--lmdb)")
    try:
        with lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False) as environment:
            _check_whole(environment, path)
            with environment.begin() as transaction:
                yield transaction
    except lmdb.Error as error:
        raise UserError(f"cannot read '{path}' as an LMDB: {error}") from None


def _check_whole(environment: "lmdb.Environment", path: Path) -> None:
    """LMDB maps its file into memory: a page that is missing at the end would end the process, without a word."""
    file = path / "data.mdb" if path.is_dir() else path
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if (size := file.stat().st_size) < needed:
        raise UserError(f"'{path}' is cut off: it has {size} bytes of {needed}; copy it again")


def _keys(transaction: "lmdb.Transaction", path: Path, notes: "Counter[str]") -> list[bytes]:
    """The keys of the values in their order, all there; DETRIS's writer names one too many, which is passed over."""
    num_values = transaction.stat()["entries"] - sum(_get(transaction, key) is not None for key in (_KEYS, _LENGTH))
    length = _special(transaction, _LENGTH, path)
    keys = _special(transaction, _KEYS, path)
    if keys is None and isinstance(length, int):
        keys = [str(number).encode() for number in range(num_values)]
    if not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
        raise UserError(
            f"'{path}' is not of CRIS's form: expected the keys '__keys__' (a list of bytes) and '__len__', among "
            f"{num_values} values; was it written to its end?"
        )
    named = len(keys)
    if keys and _get(transaction, keys[-1]) is None:
        keys = keys[:-1]
        notes["keys that '__keys__' names beyond the last value"] += 1
    if absent := [key for key in keys if _get(transaction, key) is None]:
        raise UserError(f"'{path}': {len(absent)} of the {named} keys in '__keys__' have no value, as {absent[0]!r}")
    if not keys or length not in (None, named, len(keys)):
        raise UserError(f"'{path}': '__len__' is {length!r}, but it has {len(keys)} values")
    if others := num_values - len(set(keys)):
        notes["values that '__keys__' does not name, left out"] = others
    return keys


def _get(transaction: "lmdb.Transaction", key: bytes) -> bytes | None:
    content = transaction.get(key)
    return None if content is None else bytes(content)


def _special(transaction: "lmdb.Transaction", key: bytes, path: Path) -> Any:
    content = _get(transaction, key)
    return None if content is None else _plain(content, _where(path, key))


def _where(path: Path, key: bytes) -> str:
    return f"{path}: key '{key.decode(errors='replace')}'"


def _plain(content: bytes, where: str) -> Any:
    """The value in either serialisation: pickle, or `pyarrow.serialize` of older files. Raises: RecordError."""
    if not is_legacy_arrow(content):
        return loads_plain(content, where)
    try:
        return loads(content)
    except ValueError as error:
        raise RecordError(f"{where}: a value of pyarrow.serialize that cannot be read: {error}") from None


def _fields(content: bytes, where: str) -> dict[str, Any]:
    value = _plain(content, where)
    if not isinstance(value, dict):
        raise RecordError(f"{where}: found {type(value).__name__}, expected a dictionary with 'img', 'mask', 'cat' …")
    for field in ("img", "mask"):
        if not isinstance(value.get(field), bytes):
            found = type(value.get(field)).__name__
            raise RecordError(f"{where}: field '{field}': found {found}, expected the bytes of a picture")
    return value


def _segment(number: int, content: bytes, where: str, notes: "Counter[str]") -> Segment:
    value = _fields(content, where)
    found = read_segment(number, value, where, notes, id_field="seg_id", sentences_field="sents")
    found = replace(found, ref_id=value["seg_id"])
    check_count(value.get("num_sents"), value["sents"], where, "num_sents")
    return found


def _record(
    picture: Picture, path: Path, keys: list[bytes], split: str, notes: "Counter[str]", refused: list[str]
) -> ImageRecord:
    where = f"{path}: {picture.name}"
    with _reading(path) as transaction:
        contents = {segment.number: _get(transaction, keys[segment.number]) for segment in picture.segments}
    values = {number: _fields(content or b"", _where(path, keys[number])) for number, content in contents.items()}
    image = values[picture.segments[0].number]["img"]
    if any(value["img"] != image for value in values.values()):
        raise RecordError(f"{where}: its values carry different images under this name")

    def mask_of(segment: Segment, height: int, width: int) -> Rle:
        return read_mask(values[segment.number]["mask"], height, width, _where(path, keys[segment.number]), notes)

    source = f"{path.resolve().parent.name} (cris)"
    return make_record(picture, image, mask_of, where, split=split, source=source, notes=notes, refused=refused)
