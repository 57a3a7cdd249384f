"""gRefCOCO, expressions that refer to no, one or several objects, to image records."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mres.errors import UserError
from mres.sources.reading import add_choice, add_paths
from mres.sources.refer_counts import PUBLISHED_GREFCOCO, PUBLISHED_GREFCOCO_NO_TARGET, count, kept_check
from mres.sources.refer_records import TEXTS, Text, ref_source
from mres.sources.refer_tables import Ref, RefTables, folder_of, refs_of_split
from mres.sources.source import RecordSource

SPLITS = ("train", "val", "testA", "testB")
_NAMES = ("grefs(unc).p", "grefs(unc).json")  # where both are, the API of gRefCOCO takes the first
_NOTHING = (-1,)


def grefcoco(root: Path, images: Path, *, split: str, text: Text = "sent") -> RecordSource:
    """The image records of one split: one target for each ref.

    The mask of several objects is the union of theirs, their category the names joined by "+". A ref to nothing is marked
    as `no_target`: an empty mask, a box of zeros and no category. Masks of crowds are not part of a target, as in gRefCOCO's
    own API.

    Args:
        root: the folder that holds `grefcoco`, with `grefs(unc).json` (or `.p`) and instances.json.
        images: the folder of COCO's train2014 images.
        split: one of `SPLITS`; it must be the ref's exactly.
        text: which of a sentence's texts is taken: "sent" (cleaned) or "raw" (as typed).

    Raises:
        UserError: a file that is missing or not of its form, refs that do not match the instances, an empty split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}' (--split); allowed: {', '.join(SPLITS)}")
    folder = folder_of(root, "grefcoco")
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"neither '{_NAMES[0]}' nor '{_NAMES[1]}' in '{folder}' (--root)")
    tables = RefTables(path, folder / "instances.json")
    notes: Counter[str] = Counter()
    _compare_totals(tables, notes)
    chosen, errors = refs_of_split(tables, split, str.__eq__, notes)
    refs = [_meant(ref, tables, notes) for ref in chosen]
    if nothing := sum(ref.no_target for ref in refs):
        notes["refs to nothing, with an empty mask"] = nothing
    expected = count(ref.sentences for ref in chosen)
    return ref_source(
        tables,
        refs,
        errors,
        images,
        split=split,
        title="grefcoco",
        text=text,
        description={"format": "grefcoco"},
        check_kept=kept_check(expected, split, published=False, accept=True, notes=notes),
        notes=notes,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(
        parser, ("--root", "DIR", "holds grefcoco/"), ("--images", "DIR", "the folder of COCO's train2014 images")
    )
    add_choice(parser, "--split", SPLITS, "which of them")
    parser.add_argument("--text", choices=TEXTS, default="sent", help="of a sentence: cleaned, or as typed")


def _compare_totals(tables: RefTables, notes: "Counter[str]") -> None:
    """Notes where the file has not as many expressions as are published; of single splits nothing is."""
    nothing = [ref for ref in tables.refs if ref.annotation_ids == _NOTHING]
    for what, published, refs in (
        ("expressions of all splits", PUBLISHED_GREFCOCO, tables.refs),
        ("expressions of all splits that refer to nothing", PUBLISHED_GREFCOCO_NO_TARGET, nothing),
    ):
        if (found := count(ref.sentences for ref in refs).sentences or 0) != published:
            notes[f"{what} (published: {published})"] = found


def _meant(ref: Ref, tables: RefTables, notes: "Counter[str]") -> Ref:
    """The ref with the annotations that count; -1 becomes none."""
    if ref.annotation_ids == _NOTHING:
        return replace(ref, annotation_ids=(), no_target=True)
    kept = tuple(id_ for id_ in ref.annotation_ids if not tables.annotations.get(id_, {}).get("iscrowd"))
    if left_out := len(ref.annotation_ids) - len(kept):
        notes["masks of crowds, left out"] += left_out
    return replace(ref, annotation_ids=kept)
