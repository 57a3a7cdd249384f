"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF in the layout of the REFER API to image records."""

import argparse
from collections import Counter
from pathlib import Path

from mres.errors import UserError
from mres.sources.reading import add_choice, add_paths
from mres.sources.refer_counts import PUBLISHED, check_counts, count, kept_check
from mres.sources.refer_records import TEXTS, Text, ref_source
from mres.sources.refer_tables import RefTables, folder_of, refs_of_split
from mres.sources.source import RecordSource

# Who split each data set; the first is the default.
SPLIT_BY = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "refclef": ("unc", "berkeley"),
}
SPLITS = ("train", "val", "test", "testA", "testB", "testC")


def refer(
    root: Path,
    dataset: str,
    split: str,
    images: Path,
    *,
    split_by: str | None = None,
    accept_counts: bool = False,
    text: Text = "sent",
) -> RecordSource:
    """The image records of one split: one target for each ref, with all its sentences.

    Args:
        root: the folder that holds `refcoco`, `refcoco+`, `refcocog`, each with `refs(<split_by>).p` and instances.json.
        dataset: one of `SPLIT_BY`.
        split: one of `SPLITS`.
        images: the folder of the images, COCO's train2014.
        split_by: who split the data set; None: the default.
        accept_counts: go on with other counts than the published ones.
        text: which of a sentence's texts is taken: "sent" (cleaned) or "raw" (as typed).

    Raises:
        UserError: unknown or contradictory options, a file that is missing, holds code or is not of its form, refs that
            do not match the instances, an empty split, counts that differ from the published ones.
    """
    by = _split_by(dataset, split_by)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}' (--split); allowed: {', '.join(SPLITS)}")
    folder = folder_of(root, dataset)
    path = folder / f"refs({by}).p"
    if not path.is_file():
        there = ", ".join(sorted(place.name for place in folder.glob("refs(*).p"))) or "none"
        raise UserError(f"no '{path.name}' in '{folder}' (--split-by); such files there: {there}")
    tables = RefTables(path, folder / "instances.json")
    _refuse_grefcoco(tables)
    notes: Counter[str] = Counter()
    chosen, errors = refs_of_split(tables, split, is_of_split, notes)
    published = PUBLISHED.get((dataset, by), {})
    found = {name: count(ref.sentences for ref in tables.refs if is_of_split(ref.split, name)) for name in published}
    check_counts(found, published, split, where=str(path), accept=accept_counts)
    expected = published.get(split) or count(ref.sentences for ref in chosen)
    return ref_source(
        tables,
        chosen,
        errors,
        images,
        split=split,
        title=f"{dataset} ({by})",
        text=text,
        description={"format": "refer", "dataset": dataset, "split_by": by},
        check_kept=kept_check(expected, split, published=split in published, accept=accept_counts, notes=notes),
        notes=notes,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(
        parser,
        ("--root", "DIR", "holds refcoco/, refcoco+/, refcocog/"),
        ("--images", "DIR", "the folder of COCO's train2014 images"),
    )
    add_choice(parser, "--dataset", tuple(SPLIT_BY), "which of them")
    parser.add_argument(
        "--split-by",
        choices=sorted({by for allowed in SPLIT_BY.values() for by in allowed}),
        help="whose split; unless given, umd's of refcocog and unc's of the others (train and val of google's share "
        "images)",
    )
    add_choice(parser, "--split", SPLITS, "test: all of testA, testB …")
    parser.add_argument("--text", choices=TEXTS, default="sent", help="of a sentence: cleaned, or as typed")
    parser.add_argument(
        "--accept-counts", action="store_true", help="go on where refs or sentences are not as many as published"
    )


def _split_by(dataset: str, split_by: str | None) -> str:
    allowed = SPLIT_BY.get(dataset)
    if allowed is None:
        raise UserError(f"unknown data set '{dataset}' (--dataset); allowed: {', '.join(SPLIT_BY)}")
    by = split_by or allowed[0]
    if by not in allowed:
        raise UserError(f"{dataset} has no split by '{by}' (--split-by); allowed: {', '.join(allowed)}")
    return by


def is_of_split(found: str, split: str) -> bool:
    """Whether a ref whose field `split` is `found` belongs to a split, as the REFER API decides it.

    testA, testB and testC go by their last letter, so "testAB" belongs to two of them; "test" is all of them.
    """
    if split in ("testA", "testB", "testC"):
        return split[-1] in found
    return split in found if split == "test" else split == found


def _refuse_grefcoco(tables: RefTables) -> None:
    if several := next((ref for ref in tables.refs if len(ref.annotation_ids) > 1), None):
        raise UserError(
            f"'{tables.path}': ref {several.id} has {len(several.annotation_ids)} annotations, expected one; files of "
            "gRefCOCO are read by the format grefcoco"
        )
