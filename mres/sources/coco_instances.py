"""Objects of COCO-style instance files (COCO, LVIS, Objects365 with masks) to image records."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Literal

from mres.errors import UserError
from mres.sources.coco_expressions import noun_of
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.coco_masks import is_drawn, is_held_out
from mres.sources.object_parts import MaskReader, Nouns
from mres.sources.source import RecordSource

Crowds = Literal["auto", "groups", "instances"]


def coco_instances(annotations: Path, images: Path, split: str, crowds: Crowds = "auto") -> RecordSource:
    """The image records of one file of instances, with expressions made from the category names.

    Args:
        annotations, images: the JSON and the folder of its images.
        split: the name that the records carry.
        crowds: what run lengths with `iscrowd` 1 are: regions of many instances, as in COCO, or single instances, as
            CVAT writes every mask that was painted. "auto" tells by the file, and notes it.

    Raises:
        UserError: not a COCO file, boxes without masks, no such folder, no annotated image.
    """
    file = CocoFile(annotations)
    nouns: Nouns = {name: (noun_of(name), None) for name in file.names.values()}
    if unnamed := next((name for name, (noun, _) in nouns.items() if not noun), None):
        raise UserError(f"'{file.path}': nothing can be called '{unnamed}', the name of a category")
    notes: Counter[str] = Counter()
    description = {"format": "instances"} | ({} if crowds == "auto" else {"crowds": crowds})
    _read_crowds(file, crowds, notes)
    targets_of = MaskReader(file, nouns, notes, is_held_out(split)).targets
    return image_source(file, images, split, file.name, targets_of, description, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images")
    parser.add_argument(
        "--crowds",
        choices=("auto", "groups", "instances"),
        default="auto",
        help="what masks with iscrowd 1 are: groups, as in COCO, or instances, as CVAT writes all painted ones",
    )


def _read_crowds(file: CocoFile, crowds: Crowds, notes: "Counter[str]") -> None:
    """Masks marked as crowds become instances where that is asked for, or where the file is CVAT's.

    COCO marks a few regions among many polygons. Where every mask is so marked, or all run lengths of a file of CVAT's (by
    its attributes) or supervision's (by its super-category), the mark says only that they are run lengths.
    """
    found = [annotation for annotations in file.annotations_of.values() for annotation in annotations]
    masks = [a for a in found if isinstance(a.get("segmentation"), dict)]
    marked = [a for a in found if a.get("iscrowd")]
    drawn = [a for a in found if isinstance(a.get("segmentation"), list) and is_drawn(a["segmentation"])]
    is_of_cvat = all(isinstance(a.get("attributes"), dict) and "occluded" in a["attributes"] for a in marked)
    is_of_supervision = all(entry.get("supercategory") == "common-objects" for entry in file.categories.values())
    by_rule = bool(masks) and all(a.get("iscrowd") for a in masks) and (not drawn or is_of_cvat or is_of_supervision)
    if not marked or crowds == "groups" or (crowds == "auto" and not by_rule):
        return
    for annotation in marked:
        annotation["iscrowd"] = 0
    note = "masks marked iscrowd 1, read as single instances"
    if crowds == "auto":
        note += " since all run lengths are, as CVAT and supervision write them (--crowds groups reads them as groups)"
    notes[note] = len(marked)
