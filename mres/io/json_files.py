"""JSON files that others may have written: bounded, and named where they cannot be read."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mres.errors import UserError, shown
from mres.io.files import bytes_sha256, open_regular, read_regular

# What mres writes is smaller; the largest tables of datasets (LVIS) have some 1.2 GB.
MAX_BYTES, MAX_TABLE_BYTES = 1 << 26, 1 << 33
# Of a file of at most `MAX_BYTES`: a few bytes of JSON can be hundreds in memory.
MAX_VALUES, MAX_DEPTH, MAX_LINE_BYTES = 500_000, 100, 1 << 24
_TEXTS_AND_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.S)


class JsonError(UserError):
    """A file that is not the JSON which was expected; the message names the file, and the line where there are several."""


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        JsonError: it cannot be read, has more than `max_bytes`, or is not JSON.
    """
    return parse_json(_content(path, max_bytes), f"'{path}'", bounded=max_bytes <= MAX_BYTES)


def read_json_table(path: Path) -> tuple[Any, str]:
    """The value in a dataset's JSON file, and the SHA-256 of the bytes that it was read from.

    Raises:
        FileNotFoundError, NotADirectoryError, JsonError: as `read_json`.
    """
    content = _content(path, MAX_TABLE_BYTES)
    return parse_json(content, f"'{path}'"), bytes_sha256(content)


def parse_json(content: str | bytes, where: str, *, bounded: bool = False) -> Any:
    """The value in `content`, which came from `where`.

    Args:
        bounded: of few values and not deep, as what mres writes of a run or a set.

    Raises:
        JsonError: it is not JSON, an object has a key twice, or it is not `bounded`.
    """
    try:
        if bounded and (problem := _too_much(content if isinstance(content, bytes) else content.encode())):
            raise JsonError(f"{where}: {problem}")

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            value = dict(pairs)
            if len(value) < len(pairs):
                twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
                raise JsonError(f"{where}: the key {shown(twice)} is written twice in one object; which is meant?")
            return value

        return json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError, MemoryError) as error:
        raise JsonError(f"{where}: not JSON ({error or type(error).__name__})") from None


def _too_much(content: bytes) -> str | None:
    """What no such file has, found before a value is made of it; commas and brackets within texts count, too."""
    opening = content.count(b"[") + content.count(b"{")
    if (values := opening + content.count(b",")) > MAX_VALUES:
        return f"it has up to {values:,} values; of such JSON, at most {MAX_VALUES:,} are read"
    if opening > MAX_DEPTH and _depth(content) > MAX_DEPTH:
        return f"it is nested more than {MAX_DEPTH} deep"
    return None


def _depth(content: bytes) -> int:
    """How deep its brackets are nested, those of texts left out."""
    deepest = depth = 0
    for found in _TEXTS_AND_BRACKETS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found[0], 0)
        deepest = max(deepest, depth)
    return deepest


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: as `read_json`; also where it is no object."""
    return _object(read_json(path), f"'{path}'")


def parse_object(content: str | bytes, where: str, *, bounded: bool = False) -> dict[str, Any]:
    """As `parse_json`. Raises: JsonError: what came from `where` is not a JSON object."""
    return _object(parse_json(content, where, bounded=bounded), where)


def _object(value: Any, where: str) -> dict[str, Any]:
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
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), start=1):
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise JsonError(f"{where}: a line of more than {MAX_LINE_BYTES:,} bytes, which no such file has")
            if not line.strip():
                continue
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
