"""MRES JSONL, the project's own exchange form (docs/data-format.md), to image records."""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError
from mres.io.files import open_regular
from mres.io.json_files import JsonError, parse_object
from mres.record_checks import record_from_json
from mres.records import ImageRecord, RecordError
from mres.sources.reading import add_paths, image_file
from mres.sources.source import RecordSource


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
    digest, offsets, notes = hashlib.sha256(), [], Counter[str]()
    try:
        with open_regular(records) as lines:
            place = 0
            for number, line in enumerate(lines, start=1):
                digest.update(line)
                if line.strip() and _is_of(line, split, notes):
                    offsets.append((number, place, len(line)))
                place += len(line)
    except FileNotFoundError:
        raise UserError(
            f"no records at '{records}' (--records); the format is described in docs/data-format.md"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read '{records}': {error.strerror}") from None
    if not offsets:
        where = f" of the split '{split}'" if notes else ""
        raise UserError(f"'{records}' holds no record{where}; the format is described in docs/data-format.md")
    description = {
        "format": "mres-jsonl",
        "records": records.name,
        "records_sha256": digest.hexdigest(),
        "split": split,
    }

    def make(number: int) -> ImageRecord:
        line_number, place, length = offsets[number]
        return _record(records, f"{records}:{line_number}", place, length, allow_outside=allow_outside)

    return RecordSource(str(records), len(offsets), make, description, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--records", "FILE", "one record a line"))
    parser.add_argument("--split", help="take only the records of this split")
    parser.add_argument("--allow-outside", action="store_true", help="accept image paths outside of the file's folder")


def _is_of(line: bytes, split: str | None, notes: "Counter[str]") -> bool:
    """Whether a line belongs to the split; what is no record is kept, so that making it says what is wrong."""
    if split is None:
        return True
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return True
    if not isinstance(value, dict) or value.get("split") == split:
        return True
    notes[f"records of other splits than '{split}', left out"] += 1
    return False


def _record(path: Path, where: str, place: int, length: int, *, allow_outside: bool) -> ImageRecord:
    try:
        with path.open("rb") as file:
            file.seek(place)
            line = file.read(length)
    except OSError as error:
        raise RecordError(f"{where}: cannot be read: {error.strerror}") from None
    try:
        value = parse_object(line, where)
    except JsonError as error:
        raise RecordError(str(error)) from None
    return record_from_json(value, _read_image(value, path.parent, allow_outside, where), where)


def _read_image(value: dict[str, Any], folder: Path, allow_outside: bool, where: str) -> bytes:
    image = value.get("image")
    where = f"{where}: record {value.get('id')!r}: field 'image'"
    if not isinstance(image, str) or not image:
        raise RecordError(f"{where}: found {image!r}, expected the path of a JPEG or PNG")
    relative = PurePosixPath(image)
    if not allow_outside and (relative.is_absolute() or ".." in relative.parts):
        raise RecordError(f"{where}: '{image}' leaves the folder of the records; --allow-outside accepts such paths")
    return image_file(folder / image, where)
