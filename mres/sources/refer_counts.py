"""How many refs and sentences RefCOCO, RefCOCO+ and RefCOCOg have as published, and what a file has instead."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import NamedTuple

from mres.errors import UserError
from mres.sources.coco_masks import is_held_out
from mres.sources.source import CheckKept


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


# gRefCOCO's expressions of all splits together, and those to nothing (GRES, CVPR 2023, section 3).
PUBLISHED_GREFCOCO, PUBLISHED_GREFCOCO_NO_TARGET = 278_232, 32_202


def count(sentences_of_refs: Iterable[Sized]) -> Counts:
    """Of the sentences of each ref."""
    numbers = [len(sentences) for sentences in sentences_of_refs]
    return Counts(len(numbers), sum(numbers))


def check_counts(
    found: Mapping[str, Counts], published: Mapping[str, Counts], split: str, *, where: str, accept: bool
) -> None:
    """Compares the counts of one split of a file with the published ones.

    Args:
        found: of all splits that are published.
        published: empty, or without `split`, where nothing is published.
        where: the file, for the message.
        accept: go on with others.

    Raises:
        UserError: they differ; with a table of all splits, and the remedy.
    """
    rows = _rows(found, published)
    if not accept and any(row.split == split and row.found != row.published for row in rows):
        raise UserError(
            f"'{where}' has not what is published of its split '{split}':\n{_table(rows)}\n"
            "  take the published files, or go on with these by --accept-counts"
        )


def kept_check(expected: Counts, split: str, *, published: bool, accept: bool, notes: "Counter[str]") -> CheckKept:
    """Who compares, at the end of a build, what is left of a split with what was published of it.

    What a training set has lost is noted. A held-out set that has lost anything is refused: its figures would have
    another denominator than those of others.

    Args:
        expected: the published counts, or the file's own where nothing is published (that is only noted).
        accept: note it only.
    """

    def check(targets: int, expressions: int) -> None:
        found = {split: Counts(targets, expressions)}
        differing = [row for row in _rows(found, {split: expected}) if row.found != row.published]
        if differing and published and not accept and is_held_out(split):
            raise UserError(
                f"what is left of the split '{split}' is not what was published:\n{_table(differing)}\n"
                "  what was left out is listed in the notes above and in the quarantine; repair it, or go on without it by "
                "--accept-counts (what is finished is kept)"
            )
        for row in differing:
            source = f"published of '{split}'" if published else f"in the file, of '{split}'"
            notes[f"{row.what} kept ({source}: {row.published})"] = row.found

    if not published:
        notes[f"split '{split}' without published counts, not compared"] = 1
    return check


def published_check(file: Path, notes: "Counter[str]") -> CheckKept:
    """Who notes where what is left of `<data set>/<split>.*` is not what was published of it."""
    data_set, split = file.resolve().parent.name, file.stem
    published = [of_set[split] for (name, _), of_set in PUBLISHED.items() if name == data_set and split in of_set]

    def check(targets: int, expressions: int) -> None:
        if published and not any(c.refs == targets and c.sentences in (None, expressions) for c in published):
            numbers = " or ".join(f"{c.refs} with {c.sentences or 'any number of'} sentences" for c in published)
            notes[f"refs kept of {data_set} {split} (published: {numbers})"] = targets
            notes[f"sentences kept of {data_set} {split}"] = expressions

    return check


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
