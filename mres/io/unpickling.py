"""Pickles (Python 2's and 3's, protocols 0 to 5) read by a stack machine in which nothing can run.

A pickle is a program for a small machine. Here is that machine with the opcodes that plain values need (None, bool, int,
float, str, bytes, list, tuple, dict, set, frozenset), each value bounded by the bytes that it has in the pickle, and as
many of those that take far more memory than bytes as any file of people has.
Python's own machine imports what it is told to, and takes memory for whatever number a value is to be remembered under;
torch's with weights_only=True hangs in keys that are nested tuples. Objects: `object_unpickling.py`.

Python 2's `str` is read as latin-1, as all readers of such files do; its `long` and `unicode` become int and str.
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

_SCALARS = (str, bytes, int, float, bool, type(None))
# Of one byte of a pickle come up to 216 of memory.
_MOST_SETS = 1 << 16
_MOST_MARKS = 10_000  # that are open at a time: lists in lists, each with a value before it
_MOST_DIGITS = 1 << 12  # bytes of one integer


class RefusedError(ValueError):
    """It wants what is not let through; nothing of that was imported or run."""


class Inert:
    """Stands for an object of a class that is known and not needed; `args` is what it was made of."""

    __slots__ = ("args",)

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Its fields are not needed either."""


class PlainUnpickler:
    """Reads a pickle of plain values.

    Args:
        at: where it begins in `content`; once it is read, where it ended.

    Raises:
        RefusedError: it wants more.
        ValueError, LookupError, TypeError, OverflowError, struct.error: it is damaged.
    """

    most_opcodes: ClassVar[int] = 1 << 40
    most_containers: int = 1 << 40
    most_bytes: ClassVar[int] = 1 << 40  # of the pickle, of which `content` may be a part
    values: ClassVar[dict[int, Callable[[Any], Any]]]  # opcodes that put one value on the stack
    actions: ClassVar[dict[int, Callable[[Any], Any]]]

    def __init__(self, content: bytes | mmap.mmap, at: int = 0) -> None:
        self.at = at
        self.stack: list[Any] = []
        # What is remembered, under numbers that mostly are counted up: of a large index, a list takes far less memory.
        self._counted: list[Any] = []
        self._others: dict[int, Any] = {}
        self._content = content
        self._below_mark: list[list[Any]] = []
        self._end = at + self.most_bytes
        self._num_containers = self._num_sets = 0

    def load(self, max_opcodes: int | None = None) -> Any:
        content, values, actions = self._content, self.values, self.actions
        max_opcodes = max_opcodes or self.most_opcodes
        for _ in range(max_opcodes):
            if self.at >= len(content):
                raise ValueError("it ends in the middle")
            code = content[self.at]
            self.at += 1
            if code in values:
                value = values[code](self)
                self.stack.append(value)  # which the call may have exchanged
            elif code in actions:
                actions[code](self)
            elif code == ord("."):
                return self._result()
            else:
                self._refuse(code)
        raise ValueError(f"more than {max_opcodes} opcodes")

    def _result(self) -> Any:
        if self._below_mark or len(self.stack) != 1:
            raise ValueError("its end leaves more than one value")
        return self.stack[0]

    def _refuse(self, code: int) -> None:
        import pickletools

        at = self.at - 1
        name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)), None)
        if name is None:
            raise ValueError(f"byte 0x{code:02x} at byte {at} is no opcode")
        if name in ("GLOBAL", "INST"):
            self.refuse_name(self.global_name(), at)
        if name == "STACK_GLOBAL":
            self.refuse_name(self.stack_name(), at)
        raise RefusedError(f"it wants 'the opcode {name}' at byte {at}")

    def refuse_name(self, full: str, at: int) -> None:
        """Raises: RefusedError."""
        raise RefusedError(f"it wants {full[:200]!r} at byte {at}")

    def global_name(self) -> str:
        """The "module.name" that follows."""
        return ".".join(self.line().decode(errors="replace") for _ in range(2))

    def stack_name(self) -> str:
        """The "module.name" that was put on the stack."""
        module, name = self.last(2)
        return f"{_of(str, module)}.{_of(str, name)}"

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._content, self.at)
        self.at += struct.calcsize(form)
        return value

    def counted(self, form: str) -> bytes:
        """Bytes that their number comes before."""
        length = self.number(form)
        if not 0 <= length <= len(self._content) - self.at:
            raise ValueError("it ends in the middle")
        if self.at + length > self._end:
            raise RefusedError(f"it has more than {self.most_bytes:,} bytes")
        self.at += length
        return self._content[self.at - length : self.at]

    def digits(self, form: str) -> int:
        """An integer by its bytes."""
        digits = self.counted(form)
        if len(digits) > _MOST_DIGITS:
            raise RefusedError(f"it has an integer of {len(digits):,} bytes")
        return int.from_bytes(digits, "little", signed=True)

    def container(self, empty: Any) -> Any:
        """Counts one."""
        self._num_containers += 1
        if self._num_containers > self.most_containers:
            raise RefusedError(f"it has more than {self.most_containers:,} lists, tuples and dictionaries")
        return empty

    def set_of(self, members: set[Any] | frozenset[Any]) -> Any:
        """Counts one."""
        self._num_sets += 1
        if self._num_sets > _MOST_SETS:
            raise RefusedError(f"it has more than {_MOST_SETS:,} sets")
        return members

    def line(self) -> bytes:
        start, end = self.at, self._content.find(b"\n", self.at, min(len(self._content), self._end))
        if end < 0:
            raise ValueError("it ends in the middle")
        self.at = end + 1
        return self._content[start:end]

    def mark(self) -> None:
        if len(self._below_mark) == _MOST_MARKS:
            raise RefusedError(f"it is more than {_MOST_MARKS:,} values deep")
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

    def remember(self, number: int | None = None) -> None:
        """Under the number, or the next one."""
        if number is None:
            number = len(self._counted) + len(self._others)
        if number == len(self._counted):
            self._counted.append(self.stack[-1])
            self._others.pop(number, None)
        elif 0 <= number < len(self._counted):
            self._counted[number] = self.stack[-1]
        else:
            self._others[number] = self.stack[-1]

    def remembered(self, number: int) -> Any:
        return self._counted[number] if 0 <= number < len(self._counted) else self._others[number]

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
    if type(value) is str:
        return value
    members = value if type(value) is tuple else (value,)
    if not all(type(member) in _SCALARS for member in members) and not isinstance(value, Inert):
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


def _protocol(machine: PlainUnpickler) -> None:
    if (protocol := machine.number("<B")) > 5:
        raise ValueError(f"protocol {protocol}, known are 0 to 5")


def opcode_table(actions: dict[bytes, Callable[[Any], Any]]) -> dict[int, Callable[[Any], Any]]:
    return {code[0]: action for code, action in actions.items()}


# By protocol: 0, 1, 2, 3, 4.
PlainUnpickler.values = opcode_table(
    {
        b"N": lambda m: None,                               b"I": lambda m: _integer(m.line()),
        b"L": lambda m: int(m.line().removesuffix(b"L")),   b"F": lambda m: float(m.line()),
        b"S": lambda m: _quoted(m.line()),                  b"V": lambda m: _escaped(m.line()),
        b"l": lambda m: m.container(m.since_mark()),        b"t": lambda m: m.container(tuple(m.since_mark())),
        b"d": lambda m: m.container(dict(_pairs(m.since_mark()))),
        b"g": lambda m: m.remembered(int(m.line())),
        b"J": lambda m: m.number("<i"),                     b"K": lambda m: m.number("<B"),
        b"M": lambda m: m.number("<H"),                     b"G": lambda m: m.number(">d"),
        b"U": lambda m: m.counted("<B").decode("latin-1"),  b"T": lambda m: m.counted("<i").decode("latin-1"),
        b"X": lambda m: m.counted("<I").decode(),           b"]": lambda m: m.container([]),
        b")": lambda m: (),                                 b"}": lambda m: m.container({}),
        b"h": lambda m: m.remembered(m.number("<B")),       b"j": lambda m: m.remembered(m.number("<I")),
        b"\x88": lambda m: True,                            b"\x89": lambda m: False,
        b"\x8a": lambda m: m.digits("<B"),                  b"\x8b": lambda m: m.digits("<i"),
        b"\x85": lambda m: m.container(m.last(1)),          b"\x86": lambda m: m.container(m.last(2)),
        b"\x87": lambda m: m.container(m.last(3)),          b"C": lambda m: m.counted("<B"),
        b"B": lambda m: m.counted("<I"),                    b"\x8c": lambda m: m.counted("<B").decode(),
        b"\x8d": lambda m: m.counted("<Q").decode(),        b"\x8e": lambda m: m.counted("<Q"),
        b"\x8f": lambda m: m.set_of(set()),
        b"\x91": lambda m: m.set_of(frozenset(map(_hashable, m.since_mark()))),
    }
)  # fmt: skip
PlainUnpickler.actions = opcode_table(
    {
        b"(": lambda m: m.mark(),                           b"a": lambda m: m.extend(list(m.last(1))),
        b"s": lambda m: m.update(list(m.last(2))),          b"p": lambda m: m.remember(int(m.line())),
        b"e": lambda m: m.extend(m.since_mark()),           b"u": lambda m: m.update(m.since_mark()),
        b"q": lambda m: m.remember(m.number("<B")),         b"r": lambda m: m.remember(m.number("<I")),
        b"\x80": _protocol,                                 b"\x90": lambda m: m.add(m.since_mark()),
        b"\x94": lambda m: m.remember(),                    b"\x95": lambda m: m.number("<Q"),
    }
)  # fmt: skip
