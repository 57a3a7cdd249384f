"""Pickles of plain values (Python 2's and 3's, protocols 0 to 5), read without unpickling.

A pickle is a program for a small stack machine. Here is that machine with the opcodes that plain values need (None,
bool, int, float, str, bytes, list, tuple, dict, set, frozenset) and no others: what imports, calls or builds anything is
not there, so nothing of a file can run. No global is let through, however harmless: REFER's files name none. That costs
sets of protocols 0 to 3 and bytes of 0 to 2, which pickle makes by calls.

Python 2's `str` is read as latin-1, as all readers of these files do; its `long` and `unicode` become int and str.
"""

import codecs
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.records import RecordError

# What is as large as RefCOCO (142 000 sentences) has some 30 MB and 6 million opcodes.
_MAX_BYTES = 1 << 29
_MAX_OPCODES = 50_000_000
_MAX_CONTAINERS = 10_000_000  # counted wherever they stand: a few bytes can put one list into another a billion times
_MAX_DEPTH = 50

_SCALARS = (str, bytes, int, float, bool, type(None))
_CONTAINERS = (list, tuple, dict, set, frozenset)


def load_plain(path: Path) -> Any:
    """The plain value in a pickle file.

    Raises:
        UserError: naming the file: not there, too large, no pickle, damaged, or something else than plain values in it;
            if it wants code, which.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"'{path}' has {path.stat().st_size} bytes, pickles are read up to {_MAX_BYTES}")
        content = path.read_bytes()
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
    machine = _Machine(content)
    try:
        value = machine.run()
    except _NotPlainError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(
            f"no whole pickle: damaged at or before byte {machine.at} of {len(content)} ({error})"
        ) from None
    _check_nesting(value)
    return value


class _NotPlainError(ValueError):
    """A pickle that wants more than plain values."""


class _Machine:
    """Runs a pickle; what is wrong with it is a ValueError, LookupError, TypeError, OverflowError or struct.error."""

    def __init__(self, content: bytes) -> None:
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._content = content
        self._below_mark: list[list[Any]] = []

    def run(self) -> Any:
        content = self._content
        for _ in range(_MAX_OPCODES):
            if self.at >= len(content):
                raise ValueError("it ends in the middle")
            code = content[self.at]
            self.at += 1
            if code in _VALUES:
                value = _VALUES[code](self)
                self.stack.append(value)  # which the call may have exchanged
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            elif code == ord("."):
                return self._result()
            else:
                _refuse(self, code)
        raise ValueError(f"more than {_MAX_OPCODES} opcodes")

    def _result(self) -> Any:
        if self._below_mark or len(self.stack) != 1 or self.at != len(self._content):
            raise ValueError("its end leaves more than one value, or something follows it")
        return self.stack[0]

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._content, self.at)
        self.at += struct.calcsize(form)
        return value

    def counted(self, form: str) -> bytes:
        """Bytes that their number comes before."""
        length = self.number(form)
        if not 0 <= length <= len(self._content) - self.at:
            raise ValueError("it ends in the middle")
        self.at += length
        return self._content[self.at - length : self.at]

    def line(self) -> bytes:
        start, self.at = self.at, self._content.index(b"\n", self.at) + 1
        return self._content[start : self.at - 1]

    def mark(self) -> None:
        self._below_mark.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Takes off the stack what came since the last mark."""
        items = self.stack
        self.stack = self._below_mark.pop()
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        """Takes off the stack the last `count` values."""
        if len(self.stack) < count:
            raise ValueError("a value is missing")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def remember(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        _of(list, self.stack[-1]).extend(items)

    def update(self, items: list[Any]) -> None:
        _of(dict, self.stack[-1]).update(_pairs(items))

    def add(self, items: list[Any]) -> None:
        _of(set, self.stack[-1]).update(map(_hashable, items))


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"found {type(value).__name__} in place of a {kind.__name__}")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(map(_hashable, items[0::2]), items[1::2], strict=True)


def _hashable(value: Any) -> Any:
    """Keys and members of sets: tuples at most of scalars, as hashing nested ones may take for ever or overflow."""
    members = value if type(value) is tuple else (value,)
    if not all(type(member) in _SCALARS for member in members):
        raise ValueError(f"found a nested {type(value).__name__} as a key or a member of a set")
    return value


def _integer(line: bytes) -> int | bool:
    """Python 2's INT, in which 00 and 01 are booleans."""
    return line == b"01" if line in (b"00", b"01") else int(line)


def _quoted(line: bytes) -> str:
    """Python 2's `str` as its repr."""
    line = line.strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _escaped(line: bytes) -> str:
    """Python 2's `unicode`; narrow builds of it wrote characters beyond the 16 bits as two."""
    return line.decode("raw-unicode-escape").encode("utf-16", "surrogatepass").decode("utf-16")


def _protocol(machine: _Machine) -> None:
    if (protocol := machine.number("<B")) > 5:
        raise ValueError(f"protocol {protocol}, known are 0 to 5")


_Action = Callable[[_Machine], Any]


def _table(actions: dict[bytes, _Action]) -> dict[int, _Action]:
    return {code[0]: action for code, action in actions.items()}


# Opcodes that put one value on the stack, by protocol: 0, 1, 2, 3, 4.
_VALUES = _table(
    {
        b"N": lambda m: None,
        b"I": lambda m: _integer(m.line()),
        b"L": lambda m: int(m.line().removesuffix(b"L")),
        b"F": lambda m: float(m.line()),
        b"S": lambda m: _quoted(m.line()),
        b"V": lambda m: _escaped(m.line()),
        b"l": lambda m: m.since_mark(),
        b"t": lambda m: tuple(m.since_mark()),
        b"d": lambda m: dict(_pairs(m.since_mark())),
        b"g": lambda m: m.memo[int(m.line())],
        b"J": lambda m: m.number("<i"),
        b"K": lambda m: m.number("<B"),
        b"M": lambda m: m.number("<H"),
        b"G": lambda m: m.number(">d"),
        b"U": lambda m: m.counted("<B").decode("latin-1"),
        b"T": lambda m: m.counted("<i").decode("latin-1"),
        b"X": lambda m: m.counted("<I").decode(),
        b"]": lambda m: [],
        b")": lambda m: (),
        b"}": lambda m: {},
        b"h": lambda m: m.memo[m.number("<B")],
        b"j": lambda m: m.memo[m.number("<I")],
        b"\x88": lambda m: True,
        b"\x89": lambda m: False,
        b"\x8a": lambda m: int.from_bytes(m.counted("<B"), "little", signed=True),
        b"\x8b": lambda m: int.from_bytes(m.counted("<i"), "little", signed=True),
        b"\x85": lambda m: m.last(1),
        b"\x86": lambda m: m.last(2),
        b"\x87": lambda m: m.last(3),
        b"C": lambda m: m.counted("<B"),
        b"B": lambda m: m.counted("<I"),
        b"\x8c": lambda m: m.counted("<B").decode(),
        b"\x8d": lambda m: m.counted("<Q").decode(),
        b"\x8e": lambda m: m.counted("<Q"),
        b"\x8f": lambda m: set(),
        b"\x91": lambda m: frozenset(map(_hashable, m.since_mark())),
    }
)
_ACTIONS = _table(
    {
        b"(": lambda m: m.mark(),
        b"a": lambda m: m.extend(list(m.last(1))),
        b"s": lambda m: m.update(list(m.last(2))),
        b"p": lambda m: m.remember(int(m.line())),
        b"e": lambda m: m.extend(m.since_mark()),
        b"u": lambda m: m.update(m.since_mark()),
        b"q": lambda m: m.remember(m.number("<B")),
        b"r": lambda m: m.remember(m.number("<I")),
        b"\x80": _protocol,
        b"\x90": lambda m: m.add(m.since_mark()),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"\x95": lambda m: m.number("<Q"),
    }
)


def _refuse(machine: _Machine, code: int) -> None:
    """Raises for an opcode that is not one of a plain value's, naming what it wants."""
    import pickletools

    place = f"at byte {machine.at - 1}"
    name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)), None)
    if name is None:
        raise _NotPlainError(f"not a pickle: byte 0x{code:02x} {place} is no opcode")
    wanted = f"the opcode {name}"
    if name in ("GLOBAL", "INST"):
        wanted = ".".join(machine.line().decode(errors="replace") for _ in range(2))
    elif name == "STACK_GLOBAL":
        wanted = ".".join(map(str, machine.last(2)))
    raise _NotPlainError(
        f"not a pickle of plain values: it wants {wanted[:200]!r} {place}; nothing in it was imported or run. Only "
        "dictionaries, lists, texts and numbers are read; get the file from where it was published"
    )


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
