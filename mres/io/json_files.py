"""JSON files that others may have written: bounded, and named where they cannot be read."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.files import bytes_sha256, open_regular, read_regular

# What mres writes is smaller; the largest tables of datasets (LVIS) have some 1.2 GB.
MAX_BYTES, MAX_TABLE_BYTES = 1 << 26, 1 << 33


class JsonError(UserError):
    """A file that is not the JSON which was expected; the message names the file, and the line where there are several."""


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        JsonError: it cannot be read, has more than `max_bytes`, or is not JSON.
    """
    return parse_json(_content(path, max_bytes), f"'{path}'")


def read_json_table(path: Path) -> tuple[Any, str]:
    """The value in a dataset's JSON file, and the SHA-256 of the bytes that it was read from.

    Raises:
        FileNotFoundError, NotADirectoryError, JsonError: as `read_json`.
    """
    content = _content(path, MAX_TABLE_BYTES)
    return parse_json(content, f"'{path}'"), bytes_sha256(content)


def parse_json(content: str | bytes, where: str) -> Any:
    """Raises: JsonError: what came from `where` is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JsonError(f"{where}: not JSON ({error})") from None


def parse_object(content: str | bytes, where: str) -> dict[str, Any]:
    """Raises: JsonError: what came from `where` is not a JSON object."""
    value = parse_json(content, where)
    if not isinstance(value, dict):
        raise JsonError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(path: Path, *, may_be_cut: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file as (where, object); blank lines are passed over.

    Args:
        may_be_cut: somebody may be writing it, or was killed then: a last line that is no JSON is left out.

    Raises:
        OSError: it cannot be read.
        JsonError: naming the line that is not a JSON object.
    """
    with open_regular(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = parse_object(line, where)
            except JsonError:
                if may_be_cut and not lines.read(1):
                    print(f"note: {where}: the line was cut off, and is left out", file=sys.stderr)
                    return
                raise
            yield where, value


def _content(path: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(path, max_bytes)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise JsonError(f"'{path}' cannot be read: {error.strerror}") from None
