"""PACO-LVIS (75 objects, 456 object-part categories, on COCO images) to image records."""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.records import RecordError, Target
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.coco_masks import is_held_out
from mres.sources.object_parts import MaskReader, assemble, drop_unsure, nouns_of
from mres.sources.reading import id_of
from mres.sources.source import RecordSource

# Images, and annotations of objects and parts together, as published.
PUBLISHED = {"train": (45790, 612188), "val": (2410, 31739), "test": (9443, 131902)}


def paco(annotations: Path, images: Path, split: str) -> RecordSource:
    """The image records of one file of PACO-LVIS, such as `paco_lvis_v1_train.json`.

    Objects whose category the file marks as not exhaustively annotated in an image are left out there, with their
    parts: "the chair" might be one that nobody drew.

    Raises:
        UserError: not a PACO file, no such folder, no annotated image.
    """
    file = CocoFile(annotations)
    if "part_categories" not in file.fields:
        raise UserError(
            f"'{file.path}' is not a PACO file: it has no 'part_categories', only {', '.join(sorted(file.fields))}"
        )
    nouns, notes = nouns_of(file), Counter[str]()
    _compare_counts(file, split, notes)
    drop_unsure(file, nouns, notes)
    targets_of = partial(_targets, MaskReader(file, nouns, notes, is_held_out(split)))
    return image_source(file, images, split, "paco-lvis", targets_of, {"format": "paco"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder with COCO's train2017 and val2017")


def _compare_counts(file: CocoFile, split: str, notes: "Counter[str]") -> None:
    found = len(file.images), sum(map(len, file.annotations_of.values()))
    for what, count, published in zip(("images", "annotations"), found, PUBLISHED.get(split, found), strict=True):
        if count != published:
            notes[f"{what} of the file, though PACO-LVIS {split} was published with {published}"] = count


def _targets(reader: MaskReader, image_id: Any, height: int, width: int) -> list[Target]:
    masks, notes = reader.masks(image_id, height, width), reader.notes
    objects = {one.annotation["id"]: one for one in masks if one.part is None}
    empty = {annotation["id"] for annotation in reader.file.annotations_of[image_id]}
    empty -= {one.annotation["id"] for one in masks}
    parts = []
    for one in masks:
        owner = id_of(one.annotation.get("obj_ann_id"))
        if one.part is None:
            continue
        if owner in objects and objects[owner].noun == one.noun:
            parts.append((one, owner))
        elif owner in empty:
            notes["parts of objects whose mask covers no pixel, left out"] += 1
        else:
            raise RecordError(
                f"{one.where}: field 'obj_ann_id' is {owner!r}, expected the id of a {one.noun} in its image"
            )
    return assemble(objects.values(), parts, notes)
