"""MRES JSONL, the project's own exchange form (docs/data-format.md), to image records."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError
from mres.records import ImageRecord, RecordError, record_from_json
from mres.sources.source import Source


def mres_jsonl(records: Path, *, split: str | None, allow_outside: bool = False) -> Source:
    """The image records of an MRES JSONL file.

    Args:
        records: the file; its image paths are relative to its folder.
        split: only the records of this split; None takes all.
        allow_outside: accept absolute image paths and such that leave the folder.

    Raises:
        UserError: no such file, or no record at all. What is wrong with one record comes out of the iteration as a
            `RecordError`.
    """
    digest, total = hashlib.sha256(), 0
    try:
        with records.open("rb") as lines:
            for line in lines:
                digest.update(line)
                total += bool(line.strip())
    except FileNotFoundError:
        raise UserError(
            f"no records at '{records}' (--records); the format is described in docs/data-format.md"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read '{records}': {error.strerror}") from None
    if not total:
        raise UserError(f"'{records}' holds no record; the format is described in docs/data-format.md")
    description = {
        "format": "mres-jsonl",
        "records": records.name,
        "records_sha256": digest.hexdigest(),
        "split": split,
    }
    notes: Counter[str] = Counter()
    return Source(str(records), _records(records, split, allow_outside, notes), total, description, notes)


def _records(
    path: Path, split: str | None, allow_outside: bool, notes: "Counter[str]"
) -> Iterator[ImageRecord | RecordError]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = _parse(line, where := f"{path}:{number}")
                if split is not None and value.get("split") != split:
                    notes[f"records of other splits than '{split}', left out"] += 1
                    continue
                yield record_from_json(value, _read_image(value, path.parent, allow_outside, where), where)
            except RecordError as error:
                yield error


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_image(value: dict[str, Any], folder: Path, allow_outside: bool, where: str) -> bytes:
    image = value.get("image")
    where = f"{where}: record {value.get('id')!r}: field 'image'"
    if not isinstance(image, str) or not image:
        raise RecordError(f"{where}: found {image!r}, expected the path of a JPEG or PNG")
    relative = PurePosixPath(image)
    if not allow_outside and (relative.is_absolute() or ".." in relative.parts):
        raise RecordError(f"{where}: '{image}' leaves the folder of the records; --allow-outside accepts such paths")
    try:
        return (folder / image).read_bytes()
    except (OSError, ValueError) as error:
        raise RecordError(f"{where}: '{folder / image}' cannot be read: {getattr(error, 'strerror', error)}") from None
