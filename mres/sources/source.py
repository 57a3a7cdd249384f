"""What every source hands over: records, how many, and what they were made from."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mres.records import ImageRecord, RecordError


@dataclass(frozen=True)
class Source:
    """The records of one foreign data set.

    Iterating gives an `ImageRecord`, or in its place the `RecordError` that says why one could not be made: whoever
    consumes it decides whether that ends the work or is counted and listed.

    Attributes:
        name: what messages call it: the file as the user gave it.
        items: the records, to be iterated once.
        total: how many items will come.
        description: what they are made from (JSON values), the same on every machine: no absolute paths, no dates.
        notes: what was left out or repaired on the way, message → number; complete after the iteration.
    """

    name: str
    items: Iterator[ImageRecord | RecordError]
    total: int
    description: dict[str, Any]
    notes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[ImageRecord | RecordError]:
        return self.items

    def __len__(self) -> int:
        return self.total
