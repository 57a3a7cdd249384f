"""Pickles of plain values, as REFER's and CRIS's data sets have them: of bounded size and depth, and nothing can run.

No global is let through, however harmless: REFER's files name none. That costs sets of protocols 0 to 3 and bytes of 0 to
2, which pickle makes by calls.
"""

import struct
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.files import read_regular
from mres.io.unpickling import PlainUnpickler, RefusedError
from mres.records import RecordError

# What is as large as RefCOCO (142 000 sentences) has some 30 MB and 6 million opcodes.
_MAX_BYTES = 1 << 29
_MAX_OPCODES = 50_000_000
_MAX_CONTAINERS = 10_000_000  # counted wherever they stand: a few bytes can put one list into another a billion times
_MAX_DEPTH = 50
_CONTAINERS = (list, tuple, dict, set, frozenset)


def load_plain(path: Path) -> Any:
    """The plain value in a pickle file.

    Raises:
        UserError: naming the file: not there, too large, no pickle, damaged, or something else than plain values in it;
            if it wants code, which.
    """
    try:
        content = read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    try:
        return _value(content)
    except ValueError as error:
        raise UserError(f"'{path}': {error}") from None


def loads_plain(content: bytes, where: str) -> Any:
    """The plain value in one pickle of a larger file. Raises: RecordError, naming `where`; as `load_plain`."""
    try:
        return _value(content)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None


def _value(content: bytes) -> Any:
    """Raises: ValueError, saying what is wrong; the caller names the place."""
    machine = PlainUnpickler(content)
    try:
        value = machine.load(_MAX_OPCODES)
    except RefusedError as error:
        raise ValueError(
            f"not a pickle of plain values: {error}; nothing in it was imported or run. Only dictionaries, lists, texts "
            "and numbers are read; get the file from where it was published"
        ) from None
    except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(
            f"no whole pickle: damaged at or before byte {machine.at} of {len(content)} ({error})"
        ) from None
    if machine.at != len(content):
        raise ValueError(f"no whole pickle: something follows it at byte {machine.at} of {len(content)}")
    _check_nesting(value)
    return value


def _check_nesting(value: Any) -> None:
    """Raises ValueError for what holds itself, is nested deeply, or would be enormous if it were written out."""
    todo, count = [(value, 1)], 0
    while todo:
        item, depth = todo.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_CONTAINERS:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}, or more than {_MAX_CONTAINERS} containers")
        members = item.values() if isinstance(item, dict) else item if isinstance(item, _CONTAINERS) else ()
        todo += [(member, depth + 1) for member in members if isinstance(member, _CONTAINERS)]
