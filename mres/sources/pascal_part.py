"""Pascal-Part in VLPart's COCO-style form (`train.json`, categories "object:part") to image records."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mres.errors import UserError
from mres.records import Target
from mres.sources.coco_file import CocoFile, CocoOptions, add_coco_arguments, coco_options, image_source
from mres.sources.coco_masks import share_inside
from mres.sources.object_parts import Nouns, Piece, assemble, nouns_of, read_pieces
from mres.sources.source import Source

INSIDE = 0.5  # a part belongs to the object that holds most of it, and at least this share


def pascal_part(options: CocoOptions) -> Source:
    """The image records of one file of Pascal-Part.

    The file has no link from a part to its object. Where it has whole objects (categories without a colon) a part
    belongs to the one of its kind that holds it; where it has none, as VLPart's own, parts of one name are referred to
    all together.

    Raises:
        UserError: not such a file, no such folder, no annotated image.
    """
    file = CocoFile(options.annotations)
    nouns, notes = nouns_of(file), Counter[str]()
    if not any(part for _, part in nouns.values()):
        names = ", ".join(list(file.names.values())[:3])
        raise UserError(f"'{file.path}' is not VLPart's Pascal-Part: no category is 'object:part' (it has {names} …)")
    maker = _Maker(file, nouns, notes)
    return image_source(file, options, "pascal-part", maker.targets, {"format": "pascalpart"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images, VOC2010's JPEGImages")


def from_arguments(arguments: argparse.Namespace) -> Source:
    return pascal_part(coco_options(arguments))


@dataclass(frozen=True)
class _Maker:
    file: CocoFile
    nouns: Nouns
    notes: "Counter[str]"

    def targets(self, image_id: Any, height: int, width: int) -> list[Target]:
        pieces = read_pieces(self.file, self.nouns, image_id, height, width, self.notes)
        objects = [piece for piece in pieces if piece.part is None]
        kinds = {piece.noun for piece in objects}
        parts: list[tuple[Piece, Any]] = [(p, None) for p in pieces if p.part is not None and p.noun not in kinds]
        for kind in sorted(kinds):
            same_kind = [piece for piece in pieces if piece.noun == kind]
            parts += self._owned([p for p in same_kind if p.part is not None], [p for p in same_kind if p.part is None])
        return assemble(objects, parts, self.notes)

    def _owned(self, parts: Sequence[Piece], objects: Sequence[Piece]) -> list[tuple[Piece, Any]]:
        """Each part with the id of the object that holds it."""
        found = []
        for piece in parts:
            shares = [share_inside(piece.mask, one.mask) for one in objects]
            if max(shares) >= INSIDE:
                found.append((piece, objects[shares.index(max(shares))].annotation["id"]))
            else:
                self.notes["parts that lie in no object of their kind, left out"] += 1
        return found
