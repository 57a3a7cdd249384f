"""How many refs and sentences RefCOCO, RefCOCO+ and RefCOCOg have as published, and what a file has instead."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from mres.errors import UserError


class Counts(NamedTuple):
    """Refs (objects referred to) and sentences of a split; None: not published."""

    refs: int
    sentences: int | None = None


# (data set, split by) → split → counts. Refs are those of CRIS's code (RefCOCO by Google: of TensorFlow Datasets), "test"
# is the sum of testA and testB, and RefCOCO+'s sentences of "train" are what the published total leaves for it.
PUBLISHED: dict[tuple[str, str], dict[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": Counts(42404, 120624),
        "val": Counts(3811, 10834),
        "testA": Counts(1975, 5657),
        "testB": Counts(1810, 5095),
        "test": Counts(3785, 10752),
    },
    ("refcoco", "google"): {"train": Counts(40000), "val": Counts(5000), "test": Counts(5000)},
    ("refcoco+", "unc"): {
        "train": Counts(42278, 120191),
        "val": Counts(3805, 10758),
        "testA": Counts(1975, 5726),
        "testB": Counts(1798, 4889),
        "test": Counts(3773, 10615),
    },
    ("refcocog", "umd"): {"train": Counts(42226, 80512), "val": Counts(2573, 4896), "test": Counts(5023, 9602)},
    ("refcocog", "google"): {"train": Counts(44822, 85474), "val": Counts(5000, 9536)},
}


def check_counts(
    found: Mapping[str, Counts],
    published: Mapping[str, Counts],
    split: str,
    *,
    where: str,
    accept: bool,
    notes: "Counter[str]",
) -> None:
    """Compares the counts of one split with the published ones.

    Args:
        found: of all splits that are published.
        published: empty, or without `split`, where nothing is published: that is noted.
        where: the file, for the message.
        accept: note a difference instead of refusing the file.

    Raises:
        UserError: they differ; with a table of all splits, and the remedy.
    """
    if split not in published:
        notes[f"split '{split}' without published counts, not compared"] = 1
        return
    differing = [row for row in _rows(found, published) if row.split == split and row.found != row.published]
    if differing and not accept:
        raise UserError(
            f"'{where}' has not what is published of its split '{split}':\n{_table(_rows(found, published))}\n"
            "  take the published files, or go on with these by --accept-counts"
        )
    for row in differing:
        notes[f"{row.what} (published of '{split}': {row.published})"] = row.found


class _Row(NamedTuple):
    split: str
    what: str
    published: int
    found: int


def _rows(found: Mapping[str, Counts], published: Mapping[str, Counts]) -> list[_Row]:
    return [
        _Row(split, what, expected, getattr(found[split], what))
        for split, counts in published.items()
        for what, expected in counts._asdict().items()
        if expected is not None
    ]


def _table(rows: list[_Row]) -> str:
    lines = [f"  {'split':5}  {'what':9}  {'published':>9}  {'found':>9}  {'difference':>10}"]
    for split, what, published, found in rows:
        difference = f"{found - published:+,}" if found != published else "-"
        lines.append(f"  {split:5}  {what:9}  {published:9,}  {found:9,}  {difference:>10}")
    return "\n".join(lines)
