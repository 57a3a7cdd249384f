"""What came into a model, and what did not: the table that a run prints when it starts from weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of a model whose names begin alike, as far as they came in; bytes as the model holds them."""

    name: str
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What came into the (part of the) model that was asked for, and what of the source had no place in it.

    `changed` says what was cut or interpolated, `kept` names what the source lacks (it keeps its first values), `notes`
    what of the model the source does not say, or says otherwise.
    """

    source: str
    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int
    groups: tuple[Group, ...] = ()
    part: str = ""
    format: str = ""
    changed: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"restored {self.tensors} of {self.all_tensors} tensors ({_percent(self.tensors, self.all_tensors)}), "
            f"{self.bytes:,} of {self.all_bytes:,} bytes ({_percent(self.bytes, self.all_bytes)})"
            f"{f' of the {self.part}' if self.part else ''} from {self.source}{f' ({self.format})' if self.format else ''}"
        )
        return "\n".join([text, *self._table(), *self._lists()])

    def _table(self) -> list[str]:
        width = max((len(group.name) for group in self.groups), default=0)
        digits = len(f"{self.bytes:,}")
        return [
            f"  {group.name:<{width}} {counted(group.tensors):>13} {group.bytes:>{digits},} bytes"
            f" {_percent(group.bytes, self.all_bytes):>8}"
            for group in self.groups
        ]

    def _lists(self) -> list[str]:
        lists = [("changed", self.changed), ("left behind", self.left_behind), ("keep their first values", self.kept)]
        lines = [f"  {title}: {', '.join(names)}" for title, names in lists if names]
        return lines + [f"  note: {note}" for note in self.notes]


def groups_of(sizes: Iterable[tuple[str, int]]) -> tuple[Group, ...]:
    """Names and bytes, by the first part of the names."""
    tensors: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for name, size in sizes:
        tensors[name.split(".")[0]] += 1
        num_bytes[name.split(".")[0]] += size
    return tuple(Group(name, tensors[name], num_bytes[name]) for name in tensors)


def summary(names: Iterable[str]) -> tuple[str, ...]:
    """Names by their first part, so that a whole tower is one entry."""
    counts = Counter(name.split(".")[0] + (".*" if "." in name else "") for name in names)
    return tuple(f"{head} ({counted(count)})" if head.endswith("*") else head for head, count in counts.items())


def counted(tensors: int) -> str:
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
