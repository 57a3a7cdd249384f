"""Pascal-Part in VLPart's COCO-style form (`train.json`, categories "object:part") to image records."""

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.records import Target
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.coco_masks import is_held_out, share_inside
from mres.sources.object_parts import AnnotatedMask, MaskReader, assemble, nouns_of
from mres.sources.source import RecordSource

INSIDE = 0.5  # a part belongs to the object that holds most of it, and at least this share


def pascal_part(annotations: Path, images: Path, split: str) -> RecordSource:
    """The image records of one file of Pascal-Part.

    The file has no link from a part to its object. Where it has whole objects (categories without a colon) a part
    belongs to the one of its kind that holds it; where it has none, as VLPart's own, parts of one name are referred to
    all together.

    Raises:
        UserError: not such a file, no such folder, no annotated image.
    """
    file = CocoFile(annotations)
    nouns, notes = nouns_of(file), Counter[str]()
    if not any(part for _, part in nouns.values()):
        names = ", ".join(list(file.names.values())[:3])
        raise UserError(f"'{file.path}' is not VLPart's Pascal-Part: no category is 'object:part' (it has {names} …)")
    targets_of = partial(_targets, MaskReader(file, nouns, notes, is_held_out(split)))
    return image_source(file, images, split, "pascal-part", targets_of, {"format": "pascalpart"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images, VOC2010's JPEGImages")


def _targets(reader: MaskReader, image_id: Any, height: int, width: int) -> list[Target]:
    masks, notes = reader.masks(image_id, height, width), reader.notes
    objects = [one for one in masks if one.part is None]
    kinds = {one.noun for one in objects}
    parts: list[tuple[AnnotatedMask, Any]] = [
        (one, None) for one in masks if one.part is not None and one.noun not in kinds
    ]
    for kind in sorted(kinds):
        same_kind = [one for one in masks if one.noun == kind and one.part is not None]
        parts += _owned(same_kind, [one for one in objects if one.noun == kind], notes)
    return assemble(objects, parts, notes)


def _owned(
    parts: Sequence[AnnotatedMask], objects: Sequence[AnnotatedMask], notes: "Counter[str]"
) -> list[tuple[AnnotatedMask, Any]]:
    """Each part with the id of the object that holds it."""
    found = []
    for part in parts:
        shares = [share_inside(part.mask, one.mask) for one in objects]
        if max(shares) >= INSIDE:
            found.append((part, objects[shares.index(max(shares))].annotation["id"]))
        else:
            notes["parts that lie in no object of their kind, left out"] += 1
    return found
