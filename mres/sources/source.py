"""What every source hands over: records by number, how many, and what they were made from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mres.records import ImageRecord, RecordError


@dataclass(frozen=True)
class RecordSource:
    """The records of one foreign data set, by number: any of them can be made alone, in any order, in any process.

    Everything that is wrong with the whole of the data (no such file, another format, counts that do not fit) is a
    `UserError` before a `RecordSource` exists. What is wrong with one record is a `RecordError` when that record is made:
    whoever asked for it decides whether that ends the work or is counted and listed.

    Attributes:
        name: what messages call it: the file as the user gave it.
        total: how many records `make` is asked for, those that cannot be made included.
        make: record `number` (0 … total-1); raises `RecordError`. Called in forked processes, in any order.
        description: what they are made from (JSON values), the same on every machine: no absolute paths, no dates.
        errors: entries that were refused already; they come first, one record each.
        notes: what was left out or repaired, message → number of times; grows while records are made. What is known
            before the first record is made belongs in it from the start.
    """

    name: str
    total: int
    make: Callable[[int], ImageRecord]
    description: dict[str, Any]
    notes: Counter[str] = field(default_factory=Counter)
    errors: Sequence[RecordError] = ()

    def __len__(self) -> int:
        return len(self.errors) + self.total

    def __getitem__(self, number: int) -> ImageRecord:
        """Raises: RecordError, IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {number}")
        if number < len(self.errors):
            raise self.errors[number]
        return self.make(number - len(self.errors))

    def __iter__(self) -> Iterator[ImageRecord | RecordError]:
        """All of them in their order, a `RecordError` in place of what cannot be made."""
        for number in range(len(self)):
            try:
                yield self[number]
            except RecordError as error:
                yield error

    @classmethod
    def of(
        cls, records: Sequence[ImageRecord | RecordError], description: dict[str, Any], name: str = "records"
    ) -> "RecordSource":
        """Records that are in memory already."""

        def make(number: int) -> ImageRecord:
            record = records[number]
            if isinstance(record, RecordError):
                raise record
            return record

        return cls(name, len(records), make, description)
