"""Values of `pyarrow.serialize`, which pyarrow itself can no longer read: plain values only, in pure Python.

A value is four int32 (how many tensors, sparse tensors, arrays and buffers follow), then an Arrow stream: a schema and
one batch of one column, which is a list as a dense union. A union's children are named by the number of the Python type
that they hold; lists nest as Arrow lists of such unions, dictionaries as lists of {keys, vals}.

pyarrow's own reader trusts its input and ends the process where that is damaged, so the few parts of the format that
plain values need are read here, every place checked. Pickles of classes, arrays and all else that the format can carry
are refused without being looked at.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER_BYTES = 16
_CONTINUED = 0xFFFFFFFF
_MAX_DEPTH = 16
_CUSTOM_TYPE = "_pytype_"  # the key under which an object of a class, perhaps pickled, is kept

# Numbers in Arrow's Message.fbs and Schema.fbs: headers of messages, types of columns, the first version without
# validity of unions.
_SCHEMA, _RECORD_BATCH = 1, 3
_NULL, _INT, _FLOAT, _BINARY, _UTF8, _BOOL, _LIST, _STRUCT, _UNION = 1, 2, 3, 4, 5, 6, 12, 13, 14
_NUM_BUFFERS = {_NULL: 0, _INT: 2, _FLOAT: 2, _BINARY: 3, _UTF8: 3, _BOOL: 2, _LIST: 2, _STRUCT: 1, _UNION: 2}
_VERSION_5 = 4

# The numbers by which unions name Python's types → the type of column that holds them.
_PY_TUPLE, _PY_DICT = "12", "11"
_PYTHON_TYPES = {
    "0": _NULL,
    "1": _BOOL,
    "2": _INT,
    "3": _INT,
    "4": _BINARY,
    "5": _UTF8,
    "7": _FLOAT,
    "8": _FLOAT,
    "10": _LIST,
    _PY_DICT: _LIST,
    _PY_TUPLE: _LIST,
}


def is_legacy_arrow(content: bytes) -> bool:
    """Whether a value starts as one that `pyarrow.serialize` made: no pickle starts with zeros."""
    return content[:4] == bytes(4)


def loads(content: bytes) -> Any:
    """The plain value (None, bool, int, float, str, bytes, list, tuple, dict) in the bytes of `pyarrow.serialize`.

    Raises:
        ValueError: damaged, or something else than plain values in it.
    """
    if any(content[:_HEADER_BYTES]):
        raise ValueError("it carries arrays, tensors or buffers, expected plain values")
    try:
        columns = _columns(content)
        items = _Walk(len(content)).items(columns[0], 0, columns[0].length)
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"damaged ({error})") from None
    if len(columns) != 1 or len(items) != 1:
        raise ValueError(f"{len(columns)} columns with {len(items)} values, expected one")
    return items[0]


class _Table:
    """A table of flatbuffers, the form of Arrow's metadata: fields by number, absent ones by their default."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - self._read("<i", at)
        if self._vtable < 0:
            raise ValueError("damaged (a table of metadata lies outside)")

    def _read(self, form: str, at: int) -> int:
        value: int = struct.unpack_from(form, self._data, at)[0]
        return value

    def _place(self, field: int) -> int:
        if 4 + 2 * field >= self._read("<H", self._vtable):
            return 0
        offset = self._read("<H", self._vtable + 4 + 2 * field)
        return self._at + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        place = self._place(field)
        return self._read(form, place) if place else 0

    def table(self, field: int) -> "_Table | None":
        place = self._place(field)
        return _Table(self._data, place + self._read("<I", place)) if place else None

    def _vector(self, field: int) -> tuple[int, int]:
        """Where a vector's first entry lies, and how many there are."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + self._read("<I", place)
        return start + 4, self._read("<I", start)

    def text(self, field: int) -> str:
        start, length = self._vector(field)
        return self._data[start : start + length].decode()

    def tables(self, field: int) -> "Iterator[_Table]":
        start, length = self._vector(field)
        for place in range(start, start + 4 * length, 4):
            yield _Table(self._data, place + self._read("<I", place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64."""
        start, length = self._vector(field)
        if start + 16 * length > len(self._data):
            raise ValueError("damaged (a vector of metadata ends outside)")
        return list(struct.iter_unpack("<qq", self._data[start : start + 16 * length]))


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the batch: buffers as Arrow lays them out for its type, without validity; children by name."""

    type: int
    bits: int
    length: int
    buffers: tuple[bytes, ...]
    children: "tuple[tuple[str, _Column], ...]"


def _columns(content: bytes) -> list[_Column]:
    schema, _, at = _message(content, _HEADER_BYTES, _SCHEMA)
    batch, version, start = _message(content, at, _RECORD_BATCH)
    if batch.table(3) is not None:
        raise ValueError("it is compressed")
    builder = _Builder(content[start:], iter(batch.pairs(1)), iter(batch.pairs(2)), version)
    columns = [builder.column(field, 0) for field in schema.tables(1)]
    if not columns or columns[0].type != _UNION:
        raise ValueError("it holds no list of values")
    return columns


def _message(content: bytes, at: int, kind: int) -> tuple[_Table, int, int]:
    """A message's header, its version, and where its body (of a schema: the next message) starts."""
    size = struct.unpack_from("<I", content, at)[0]
    at += 4
    if size == _CONTINUED:  # pyarrow before 0.15 wrote the size alone
        size = struct.unpack_from("<I", content, at)[0]
        at += 4
    metadata = content[at : at + size]
    message = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    header = message.table(2)
    if message.number(1, "<B") != kind or header is None:
        raise ValueError("damaged (a schema and a batch of values are expected)")
    return header, message.number(0, "<h"), at + size


class _Builder:
    """Joins a schema's fields with the lengths and buffers of a batch, which list them depth first."""

    def __init__(
        self, body: bytes, nodes: Iterator[tuple[int, int]], buffers: Iterator[tuple[int, int]], version: int
    ) -> None:
        self._body, self._nodes, self._buffers, self._version = body, nodes, buffers, version

    def column(self, field: _Table, depth: int) -> _Column:
        type_, parameters = field.number(2, "<B"), field.table(3)
        if depth > 4 * _MAX_DEPTH or type_ not in _NUM_BUFFERS or parameters is None:
            raise ValueError(f"a column of Arrow's type {type_}, expected those of plain values")
        length, num_nulls = next(self._nodes, (-1, 0))
        if length < 0 or (num_nulls and type_ != _NULL):
            raise ValueError("damaged (a column without its length, or with gaps)")
        has_validity = type_ != _NULL and (type_ != _UNION or self._version < _VERSION_5)
        buffers = [self._buffer() for _ in range(_NUM_BUFFERS[type_] + (has_validity and type_ == _UNION))]
        children = tuple((child.text(0), self.column(child, depth + 1)) for child in field.tables(5))
        bits = parameters.number(0, "<i") if type_ == _INT else 16 << parameters.number(0, "<h") % 3
        return _Column(type_, bits, length, tuple(buffers[has_validity:]), children)

    def _buffer(self) -> bytes:
        offset, length = next(self._buffers, (-1, -1))
        if offset < 0 or length < 0 or offset + length > len(self._body):
            raise ValueError("damaged (a buffer lies outside)")
        return self._body[offset : offset + length]


class _Walk:
    """Turns columns into Python values; `budget` bounds them, as damaged lists may overlap and repeat each other."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def items(self, union: _Column, start: int, stop: int) -> list[Any]:
        """The values of a union from `start` to `stop`."""
        if union.type != _UNION or not 0 <= start <= stop:
            raise ValueError("damaged (a list without items)")
        self._spend(stop - start)
        codes, offsets = union.buffers
        return [self._value(*union.children[codes[i]], *_ints(offsets, i, 1)) for i in range(start, stop)]

    def _value(self, python_type: str, column: _Column, index: int) -> Any:
        if _PYTHON_TYPES.get(python_type) != column.type:
            raise ValueError(f"a value of type number {python_type[:20]!r}, expected plain values")
        if index < 0:
            raise ValueError("damaged (a negative place)")
        if column.type == _LIST:
            start, stop = _ints(column.buffers[0], index, 2)
            _, child = column.children[0]
            if python_type == _PY_DICT:
                return self._dict(child, start, stop)
            items = self.items(child, start, stop)
            return tuple(items) if python_type == _PY_TUPLE else items
        if column.type in (_BINARY, _UTF8):
            return self._text(column, index)
        return _number(column, index)

    def _dict(self, pairs: _Column, start: int, stop: int) -> dict[Any, Any]:
        if pairs.type != _STRUCT or [name for name, _ in pairs.children] != ["keys", "vals"]:
            raise ValueError("damaged (a dictionary without keys and values)")
        (_, keys_column), (_, values_column) = pairs.children
        keys = self.items(keys_column, start, stop)
        if not all(isinstance(key, str | int | bytes) for key in keys):
            raise ValueError("a dictionary's key that is neither text nor a number")
        if _CUSTOM_TYPE in keys:
            raise ValueError("it holds an object of a class, expected plain values")
        return dict(zip(keys, self.items(values_column, start, stop), strict=True))

    def _text(self, column: _Column, index: int) -> str | bytes:
        start, stop = _ints(column.buffers[0], index, 2)
        if not 0 <= start <= stop <= len(column.buffers[1]):
            raise ValueError("damaged (a text lies outside)")
        self._spend(stop - start)
        content = column.buffers[1][start:stop]
        return content.decode() if column.type == _UTF8 else content

    def _spend(self, cost: int) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise ValueError("it unpacks to more than its own size")


def _ints(buffer: bytes, index: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}i", buffer, 4 * index)


def _number(column: _Column, index: int) -> int | float | bool | None:
    if column.type == _NULL:
        return None
    (buffer,) = column.buffers
    if column.type == _BOOL:
        return bool(buffer[index // 8] >> index % 8 & 1)
    forms = {(_INT, 64): "<q", (_FLOAT, 32): "<f", (_FLOAT, 64): "<d"}
    form = forms.get((column.type, column.bits))
    if form is None:
        raise ValueError(f"numbers of {column.bits} bits, expected plain values")
    number: int | float = struct.unpack_from(form, buffer, struct.calcsize(form) * index)[0]
    return number
