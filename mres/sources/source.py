"""What every source hands over: records by number, how many, and what they were made from."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mres.pixels.picture import read_header
from mres.pixels.upright import ASSUMED, Frame, upright_record
from mres.records import ImageRecord, RecordError
from mres.sources.coco_masks import MaskSizeError
from mres.sources.reading import in_size_of_masks, misfit_of


class NothingLeftError(RecordError):
    """A record of which nothing is left once what was counted in `notes` is left out: no error, it is passed over."""


CheckKept: TypeAlias = Callable[[int, int], None]


def any_counts(targets: int, expressions: int) -> None:
    """Of most sets nobody has published how many there are."""


@dataclass(frozen=True)
class Undrawn:
    """An image whose masks `made(height, width)` draws: in the `size` that its annotation says, else upright or as stored."""

    where: str
    image: bytes
    made: Callable[[int, int], ImageRecord]
    size: tuple[int, int] | None

    def drawn(self, frame: Frame, notes: "Counter[str]") -> ImageRecord:
        """The record; in a size of "auto", upright, which is counted, unless run lengths are of the other size."""
        if self.size:
            try:
                return self.made(*self.size)
            except MaskSizeError as error:
                raise misfit_of(error, read_header(self.image)) from None
        record = in_size_of_masks(self.image, self.where, self.made, frame)
        header = read_header(self.image)
        if frame == "auto" and (record.width, record.height) == header.upright_size != header.size:
            notes[ASSUMED] += 1
        return record


@dataclass(frozen=True)
class RecordSource:
    """The records of one foreign data set, by number: any of them can be made alone, in any order, in any process.

    Everything that is wrong with the whole of the data (no such file, another format, counts that do not fit) is a
    `UserError` before a `RecordSource` exists. What is wrong with one record is a `RecordError` when that record is made:
    whoever asked for it decides whether that ends the work or is counted and listed.

    Attributes:
        name: what messages call it: the file as the user gave it.
        total: how many records `annotated` is asked for, those that cannot be made included.
        annotated: record `number` (0 … total-1) as the format has it: the image's bytes as they are, masks as they were
            drawn on it, upright or as stored (`Undrawn`: not drawn yet); raises `RecordError`. Called in forked
            processes, in any order.
        description: what they are made from (JSON values), the same on every machine: no absolute paths, no dates.
        errors: entries that were refused already; they come first, one record each.
        place_of: where record `number` stands, "file:line"; None: its number says that.
        check_kept: what is called with the numbers of targets and expressions that are left, at the end of a build; it
            raises a `UserError` where these are not what was published.
        refused: what was wrong with parts of records whose other parts are kept; grows while records are made. Each counts
            as a bad record.
        frame: what masks were drawn on, where an image has an EXIF orientation (`mres.pixels.upright`).
        notes: what was left out or repaired, message → number of times; grows while records are made. What is known
            before the first record is made belongs in it from the start.
    """

    name: str
    total: int
    annotated: Callable[[int], ImageRecord | Undrawn]
    description: dict[str, Any]
    notes: Counter[str] = field(default_factory=Counter)
    errors: Sequence[RecordError] = ()
    place_of: Callable[[int], str] | None = None
    check_kept: CheckKept = any_counts
    refused: list[str] = field(default_factory=list)
    frame: Frame = "auto"

    def __len__(self) -> int:
        return len(self.errors) + self.total

    def make(self, number: int) -> ImageRecord:
        """Record `number` (0 … total-1), its image upright, of 8 bits, JPEG or PNG. Raises: RecordError."""
        found = self.annotated(number)
        record = found.drawn(self.frame, self.notes) if isinstance(found, Undrawn) else found
        return upright_record(record, self.frame, self.name, self.notes)

    def __getitem__(self, number: int) -> ImageRecord:
        """Raises: RecordError, also for what no reader has foreseen (a name that no file can have, a number of 400 digits)."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {number}")
        if number < len(self.errors):
            raise self.errors[number]
        try:
            return self.make(number - len(self.errors))
        except (OSError, ValueError, ArithmeticError, RecursionError) as error:
            raise RecordError(f"{self.place(number)}: cannot be read: {type(error).__name__}: {error}") from None

    def place(self, number: int) -> str:
        """Where a record stands, for messages."""
        if self.place_of is None or number < len(self.errors):
            return f"{self.name}: record number {number}"
        return self.place_of(number - len(self.errors))

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
