"""gRefCOCO, expressions that refer to no, one or several objects, to image records."""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mres.errors import UserError
from mres.sources.reading import add_choice, add_paths
from mres.sources.refer_tables import Ref, RefTables, folder_of, ref_source, refs_of_split
from mres.sources.source import RecordSource

SPLITS = ("train", "val", "testA", "testB")
_NAMES = ("grefs(unc).p", "grefs(unc).json")  # where both are, the API of gRefCOCO takes the first
_NOTHING = (-1,)


def grefcoco(root: Path, images: Path, *, split: str) -> RecordSource:
    """The image records of one split: one target for each ref.

    The mask of several objects is the union of theirs, their category the names joined by "+". A ref to nothing has an
    empty mask, a box of zeros and the category "no-target". Masks of crowds are not part of a target, as in gRefCOCO's
    own API.

    Args:
        root: the folder that holds `grefcoco`, with `grefs(unc).json` (or `.p`) and instances.json.
        images: the folder of COCO's train2014 images.
        split: one of `SPLITS`; it must be the ref's exactly.

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
    refs = list(_without_crowds(refs_of_split(tables, split, str.__eq__, notes), tables, notes))
    if nothing := sum(not ref.annotation_ids for ref in refs):
        notes["refs to nothing, with an empty mask"] = nothing
    return ref_source(
        tables, refs, images, split=split, title="grefcoco", description={"format": "grefcoco"}, notes=notes
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(
        parser, ("--root", "DIR", "holds grefcoco/"), ("--images", "DIR", "the folder of COCO's train2014 images")
    )
    add_choice(parser, "--split", SPLITS, "which of them")


def _without_crowds(refs: list[Ref], tables: RefTables, notes: "Counter[str]") -> Iterator[Ref]:
    """The refs with the annotations that count; -1 becomes none."""
    for ref in refs:
        if ref.annotation_ids == _NOTHING:
            yield replace(ref, annotation_ids=())
            continue
        kept = tuple(id_ for id_ in ref.annotation_ids if not tables.annotations.get(id_, {}).get("iscrowd"))
        if left_out := len(ref.annotation_ids) - len(kept):
            notes["masks of crowds, left out"] += left_out
        if kept:
            yield replace(ref, annotation_ids=kept)
        else:
            notes["refs to crowds alone, left out"] += 1
