"""A zip file (stored, 64 bits) made by appending alone, so that one that was broken off can be gone on with.

Its state is plain: where it ends, its members, and how far the last one is. Format: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

_VERSION, _FLAGS, _DATE = 45, 0x0808, 0x21  # 64 bits; CRC after the bytes, names in UTF-8; 1980-01-01
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_AFTER = struct.Struct("<4sIQQ")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")
_FULL, _FULL_16 = 0xFFFFFFFF, 0xFFFF
_EXTRA_64 = struct.Struct("<HHQQ")


class Sink(Protocol):
    """What is appended to."""

    def write(self, data: Any) -> int: ...

    def tell(self) -> int: ...


@dataclass(slots=True)
class Member:
    """`offset`: of its header; `left`: bytes that are still to come."""

    name: str
    offset: int
    size: int
    left: int
    crc: int = 0


@dataclass(slots=True)
class ZipState:
    members: list[Member] = field(default_factory=list)
    is_closed: bool = False

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> ZipState:
        return cls([Member(**member) for member in plain["members"]], plain["is_closed"])


class ZipAppender:
    """Offsets are from where `sink` is at the beginning, or `begin` where it is gone on with.

    Args:
        alignment: bytes of members begin at multiples of it.
    """

    def __init__(self, sink: Sink, alignment: int, state: ZipState | None = None, begin: int | None = None) -> None:
        self._sink, self._alignment = sink, alignment
        self._begin = sink.tell() if begin is None else begin
        self.state = state or ZipState()

    def open(self, name: str, size: int) -> None:
        """Begins a member of so many bytes, which `write` brings."""
        offset, encoded = self._sink.tell() - self._begin, name.encode()
        data_at = offset + _LOCAL.size + len(encoded) + _EXTRA_64.size + 4
        padding = -data_at % self._alignment
        extra = _EXTRA_64.pack(1, 16, size, size) + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        header = _LOCAL.pack(b"PK\3\4", _VERSION, _FLAGS, 0, 0, _DATE, 0, _FULL, _FULL, len(encoded), len(extra))
        self._sink.write(header + encoded + extra)
        self.state.members.append(Member(name, offset, size, size))
        self._end_if_full()

    def write(self, data: memoryview | bytes) -> None:
        member = self.state.members[-1]
        num_bytes = memoryview(data).nbytes
        assert num_bytes <= member.left, "more than there is room for"
        if num_bytes:
            member.crc = zlib.crc32(data, member.crc)
            self._sink.write(data)
            member.left -= num_bytes
            self._end_if_full()

    def _end_if_full(self) -> None:
        member = self.state.members[-1]
        if not member.left:
            self._sink.write(_AFTER.pack(b"PK\7\x08", member.crc, member.size, member.size))

    def close(self) -> None:
        """Writes the directory of members, without which it is no zip file."""
        start, count = self._sink.tell() - self._begin, len(self.state.members)
        directory = b"".join(map(_entry, self.state.members))
        end = start + len(directory)
        content = directory
        if count >= _FULL_16 or end >= _FULL:
            content += _END_64.pack(
                b"PK\6\6", _END_64.size - 12, _VERSION, _VERSION, 0, 0, count, count, len(directory), start
            )
            content += _LOCATOR.pack(b"PK\6\7", 0, end, 1)
        few = min(count, _FULL_16)
        content += _END.pack(b"PK\5\6", 0, 0, few, few, min(len(directory), _FULL), min(start, _FULL), 0)
        self._sink.write(content)
        self.state.is_closed = True


def _entry(member: Member) -> bytes:
    """Of the directory; what does not fit into 32 bits stands in an extra field."""
    large = [number for number in (member.size, member.size, member.offset) if number >= _FULL]
    extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    size, offset, name = min(member.size, _FULL), min(member.offset, _FULL), member.name.encode()
    fixed = _CENTRAL.pack(
        b"PK\1\2", _VERSION, _VERSION, _FLAGS, 0, 0, _DATE, member.crc, size, size,
        len(name), len(extra), 0, 0, 0, 0, offset,
    )  # fmt: skip
    return fixed + name + extra
