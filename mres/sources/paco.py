"""PACO-LVIS (75 objects, 456 object-part categories, on COCO images) to image records."""

import argparse
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mres.errors import UserError
from mres.records import RecordError, Target
from mres.sources.coco_file import CocoFile, CocoOptions, add_coco_arguments, coco_options, image_source
from mres.sources.object_parts import Nouns, Piece, assemble, nouns_of, read_pieces
from mres.sources.source import Source

# Images, and annotations of objects and parts together, as published.
PUBLISHED = {"train": (45790, 612188), "val": (2410, 31739), "test": (9443, 131902)}


def paco(options: CocoOptions) -> Source:
    """The image records of one file of PACO-LVIS, such as `paco_lvis_v1_train.json`.

    Objects whose category the file marks as not exhaustively annotated in an image are left out there, with their
    parts: "the chair" might be one that nobody drew.

    Raises:
        UserError: not a PACO file, no such folder, no annotated image.
    """
    file = CocoFile(options.annotations)
    if "part_categories" not in file.fields:
        raise UserError(f"'{file.path}' is not a PACO file: it has no 'part_categories', only {_listed(file.fields)}")
    nouns, notes = nouns_of(file), Counter[str]()
    _compare_counts(file, options.split, notes)
    _leave_out_unsure(file, nouns, notes)
    maker = _Maker(file, nouns, notes)
    return image_source(file, options, "paco-lvis", maker.targets, {"format": "paco"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder with COCO's train2017 and val2017")


def from_arguments(arguments: argparse.Namespace) -> Source:
    return paco(coco_options(arguments))


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


def _compare_counts(file: CocoFile, split: str, notes: "Counter[str]") -> None:
    found = len(file.images), sum(map(len, file.annotations_of.values()))
    for what, count, published in zip(("images", "annotations"), found, PUBLISHED.get(split, found), strict=True):
        if count != published:
            notes[f"{what} of the file, though PACO-LVIS {split} was published with {published}"] = count


def _leave_out_unsure(file: CocoFile, nouns: Nouns, notes: "Counter[str]") -> None:
    for image_id, annotations in file.annotations_of.items():
        unsure_ids = file.images[image_id].get("not_exhaustive_category_ids") or ()
        unsure = {nouns[file.names[id_]][0] for id_ in unsure_ids if isinstance(id_, int) and id_ in file.names}
        kept = [a for a in annotations if _noun(a, file, nouns) not in unsure]
        if left_out := len(annotations) - len(kept):
            notes["annotations of objects of which their image has more, not annotated, left out"] += left_out
            file.annotations_of[image_id] = kept


def _noun(annotation: dict[str, Any], file: CocoFile, nouns: Nouns) -> str | None:
    name = file.names.get(annotation["category_id"])
    return None if name is None else nouns[name][0]


@dataclass(frozen=True)
class _Maker:
    file: CocoFile
    nouns: Nouns
    notes: "Counter[str]"

    def targets(self, image_id: Any, height: int, width: int) -> list[Target]:
        pieces = read_pieces(self.file, self.nouns, image_id, height, width, self.notes)
        objects = {piece.annotation["id"]: piece for piece in pieces if piece.part is None}
        empty = {annotation["id"] for annotation in self.file.annotations_of[image_id]}
        empty -= {piece.annotation["id"] for piece in pieces}
        parts = []
        for piece in pieces:
            owner = piece.annotation.get("obj_ann_id")
            if piece.part is not None and self._is_owned(piece, owner, objects, empty):
                parts.append((piece, owner))
        return assemble(objects.values(), parts, self.notes)

    def _is_owned(self, piece: Piece, owner: Any, objects: dict[Any, Piece], empty: set[Any]) -> bool:
        """Whether a part's object is there; False, and counted, if its mask is empty."""
        if isinstance(owner, int | str):
            if owner in objects and objects[owner].noun == piece.noun:
                return True
            if owner in empty:
                self.notes["parts of objects whose mask covers no pixel, left out"] += 1
                return False
        raise RecordError(
            f"{piece.where}: field 'obj_ann_id' is {owner!r}, expected the id of a {piece.noun} in its image"
        )
