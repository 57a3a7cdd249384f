"""MRES JSONL, the project's own exchange form (docs/data-format.md), to image records."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mres.errors import UserError, near, shown
from mres.io.files import open_regular
from mres.io.json_files import JsonError, parse_object
from mres.pixels.picture import read_header
from mres.record_checks import record_from_json
from mres.records import MAX_SIDE, MAX_TARGETS, ImageRecord, RecordError, Rle
from mres.sources.coco_masks import EmptyMaskError, MaskSizeError, annotation_mask, bounding_box, empty_mask
from mres.sources.mask_files import read_mask
from mres.sources.reading import add_paths, image_file, misfit_of
from mres.sources.source import RecordSource

_MAX_LINE = 1 << 27  # bytes; ten thousand large masks are fewer
_SHOWN_SPLITS = 20


def mres_jsonl(records: Path, *, split: str | None, allow_outside: bool = False) -> RecordSource:
    """The image records of an MRES JSONL file.

    Args:
        records: the file; its image paths are relative to its folder.
        split: only the records of this split; None takes all.
        allow_outside: accept absolute image paths and such that leave the folder.

    Raises:
        UserError: no such file, or no record at all. What is wrong with one record comes out of the iteration as a
            `RecordError`.
    """
    digest, offsets, splits = hashlib.sha256(), [], Counter[str | None]()
    try:
        with open_regular(records) as file:
            for number, place, length, line in _lines(file, digest.update):
                found = None if split is None else _split_of(line)
                splits[found] += bool(line.strip())
                if line.strip() and found in (None, split):
                    offsets.append((number, place, length))
    except FileNotFoundError:
        raise UserError(
            f"no records at '{records}' (--records); the format is described in docs/data-format.md"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read '{records}': {error.strerror}") from None
    if not offsets and not splits.total():
        raise UserError(f"'{records}' holds no record; the format is described in docs/data-format.md")
    notes = Counter[str]()
    if split is not None:
        _check_split(splits, split, records)
        if others := sum(number for found, number in splits.items() if found not in (None, split)):
            notes[f"records of other splits than '{split}', left out"] = others
    description = {
        "format": "mres-jsonl",
        "records": records.name,
        "records_sha256": digest.hexdigest(),
        "split": split,
    }

    def make(number: int) -> ImageRecord:
        _, place, length = offsets[number]
        where = place_of(number)
        value = _value(records, where, place, length)
        path = _file(value, "image", records.parent, allow_outside, where)
        image = image_file(path, f"{where}: record {shown(value.get('id'))}: field 'image'")
        masks = _Masks(records.parent, allow_outside, notes)
        try:
            return record_from_json(masks.as_run_lengths(value, where), image, where)
        except MaskSizeError as error:
            raise misfit_of(error, read_header(image)) from None

    def place_of(number: int) -> str:
        return f"{records}:{offsets[number][0]}"

    return RecordSource(str(records), len(offsets), make, description, notes, place_of=place_of)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--records", "FILE", "one record a line"))
    parser.add_argument("--split", help="take only the records of this split")
    parser.add_argument("--allow-outside", action="store_true", help="accept image paths outside of the file's folder")


def _lines(file: BinaryIO, hashed: Callable[[bytes], None]) -> Iterator[tuple[int, int, int, bytes]]:
    """Each line's number, place, length and content; of one of more than `_MAX_LINE` bytes, its beginning."""
    place = 0
    for number in count(1):
        line = rest = file.readline(_MAX_LINE)
        if not line:
            return
        hashed(line)
        length = len(line)
        while len(rest) == _MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE)
            hashed(rest)
            length += len(rest)
        yield number, place, length, line
        place += length


def _split_of(line: bytes) -> str | None:
    """The split of a line's record; None for what is no record: it is kept, so that making it says what is wrong."""
    try:
        split = parse_object(line, "").get("split")
    except JsonError:
        return None
    return split if isinstance(split, str) else shown(split)


def _check_split(splits: "Counter[str | None]", split: str, path: Path) -> None:
    """Raises: UserError: there is no record of the split; it names those that there are."""
    if split in splits:
        return
    there = {name: number for name, number in splits.items() if name is not None}
    named = ", ".join(f"{name} ({number:,})" for name, number in list(there.items())[:_SHOWN_SPLITS]) or "none"
    meant = near(split, list(there), otherwise="")
    raise UserError(
        f"'{path}' holds no record of the split '{split}' (--split); its splits: {named}{meant and '; ' + meant}"
    )


def _value(path: Path, where: str, place: int, length: int) -> dict[str, Any]:
    """The JSON object of a line. Raises: RecordError."""
    if length > _MAX_LINE:
        raise RecordError(f"{where}: a line of {length:,} bytes; records have at most {_MAX_LINE:,}")
    try:
        with open_regular(path) as file:
            file.seek(place)
            line = file.read(length)
    except OSError as error:
        raise RecordError(f"{where}: cannot be read: {error.strerror}") from None
    try:
        return parse_object(line, where)
    except JsonError as error:
        raise RecordError(str(error)) from None


def _file(value: dict[str, Any], field: str, folder: Path, allow_outside: bool, where: str) -> Path:
    """The file that a field of a record or target names. Raises: RecordError: it names none, or one elsewhere."""
    name = value.get(field)
    where = f"{where}: {'record' if field == 'image' else 'target'} {shown(value.get('id'))}: field '{field}'"
    if not isinstance(name, str) or not name:
        raise RecordError(f"{where}: found {shown(name)}, expected the path of a picture")
    relative = PurePosixPath(name)
    if not allow_outside and (relative.is_absolute() or ".." in relative.parts):
        raise RecordError(
            f"{where}: {shown(name)} leaves the folder of the records; --allow-outside accepts such paths"
        )
    return folder / name


class _Masks:
    """Masks as people have them (polygons, run lengths as a list, mask files, none) to compressed run lengths."""

    def __init__(self, folder: Path, allow_outside: bool, notes: "Counter[str]") -> None:
        self._folder, self._allow_outside, self._notes = folder, allow_outside, notes

    def as_run_lengths(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        """A record's object with its masks converted; what is wrong with other fields is for others to say.

        Raises:
            RecordError: a mask that cannot be read.
        """
        height, width, targets = value.get("height"), value.get("width"), value.get("targets")
        has_size = all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width))
        if not has_size or not isinstance(targets, list) or len(targets) > MAX_TARGETS:
            return value
        assert isinstance(height, int) and isinstance(width, int)  # noqa: PT018
        where = f"{where}: record {shown(value.get('id'))}"
        return {**value, "targets": [self._target(target, height, width, where) for target in targets]}

    def _target(self, target: Any, height: int, width: int, where: str) -> Any:
        if not isinstance(target, dict):
            return target
        mask = target.get("mask")
        as_written = isinstance(mask, dict) and isinstance(mask.get("counts"), str) and mask["counts"] != ""
        if as_written and target.get("box") is not None:
            return target
        rle = self._mask(target, height, width, where)
        box = target.get("box")
        return {**target, "mask": rle.to_json(), "box": list(bounding_box(rle)) if box is None else box}

    def _mask(self, target: dict[str, Any], height: int, width: int, where: str) -> Rle:
        mask = target.get("mask")
        if isinstance(mask, str) and mask:
            path = _file(target, "mask", self._folder, self._allow_outside, where)
            with suppress(EmptyMaskError):
                return read_mask(path, height, width, f"{where}, target {shown(target.get('id'))}", self._notes)
            return empty_mask(height, width)
        place = f"{where}, target {shown(target.get('id'))}: field 'mask'"
        return annotation_mask(mask, height, width, place, self._notes) or empty_mask(height, width)
