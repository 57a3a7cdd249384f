"""PartImageNet (ImageNet photographs, 11 super-categories with parts) to image records."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError
from mres.records import Expression, Target
from mres.sources.coco_expressions import category_expressions, noun_of, part_expressions, plural
from mres.sources.coco_file import CocoFile, CocoOptions, add_coco_arguments, coco_options, image_source
from mres.sources.coco_masks import union
from mres.sources.object_parts import Nouns, Piece, drop_slivers, make_target, read_pieces
from mres.sources.source import Source

SUPER_CATEGORIES = (
    *("Quadruped", "Biped", "Fish", "Bird", "Snake", "Reptile"),
    *("Car", "Bicycle", "Boat", "Aeroplane", "Bottle"),
)
_SPELLED = {"tier": "tire"}  # the files' "Car Tier"
_ONE_EACH = {"head", "body", "tail", "seat", "mouth"}  # several of them are several objects


def partimagenet(options: CocoOptions, synsets: Path | None = None) -> Source:
    """The image records of one file of PartImageNet.

    An object's mask is that of its super-category ("Quadruped") where the file has it, else the union of its parts.

    Args:
        options: the JSON, its images, the split's name.
        synsets: ImageNet's `LOC_synset_mapping.txt`; objects are then also called by their class ("tiger").

    Raises:
        UserError: not a PartImageNet file, no such folder, no annotated image, a class that `synsets` lacks.
    """
    file = CocoFile(options.annotations)
    nouns, notes = _nouns(file), Counter[str]()
    classes = {} if synsets is None else _classes(file, synsets)
    drop_slivers(file, notes)
    maker = _Maker(file, nouns, classes, notes)
    description = {"format": "partimagenet", "synsets": None if synsets is None else synsets.name}
    return image_source(file, options, "partimagenet", maker.targets, description, notes, _place)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images, flat or one folder a class")
    parser.add_argument(
        "--synsets",
        type=Path,
        metavar="FILE",
        help="ImageNet's LOC_synset_mapping.txt: also call objects by their class",
    )


def from_arguments(arguments: argparse.Namespace) -> Source:
    return partimagenet(coco_options(arguments), arguments.synsets)


def _nouns(file: CocoFile) -> Nouns:
    """ "Car Side Mirror" is ("car", "side mirror"), "Car" ("car", None)."""
    nouns: dict[str, tuple[str, str | None]] = {}
    for name in file.names.values():
        owner, _, part = name.partition(" ")
        if owner not in SUPER_CATEGORIES:
            allowed = ", ".join(SUPER_CATEGORIES)
            raise UserError(f"'{file.path}' is not PartImageNet: its category '{name}' begins with none of {allowed}")
        noun = noun_of(part)
        nouns[name] = owner.lower(), _SPELLED.get(noun, noun) or None
    return nouns


def _synset(file_name: str) -> str:
    return PurePosixPath(file_name).name.split("_")[0]


def _place(file_name: str) -> str:
    """Images lie in one folder a class, as in ImageNet, or in one folder."""
    return file_name if "/" in file_name else f"{_synset(file_name)}/{file_name}"


def _classes(file: CocoFile, synsets: Path) -> dict[str, str]:
    """{synset id: its class's first name} for all images of the file."""
    try:
        lines = synsets.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{synsets}' (--synsets): {error}") from None
    names = dict(line.split(" ", 1) for line in lines if " " in line)
    for entry in file.images.values():
        if (synset := _synset(entry["file_name"])) not in names:
            raise UserError(
                f"'{synsets}' (--synsets) has no line for '{synset}', the class of '{entry['file_name']}'; "
                "expected lines such as 'n02129604 tiger, Panthera tigris'"
            )
    return {synset: noun_of(text.split(",")[0]) for synset, text in names.items()}


@dataclass(frozen=True)
class _Maker:
    file: CocoFile
    nouns: Nouns
    classes: Mapping[str, str]
    notes: "Counter[str]"

    def targets(self, image_id: Any, height: int, width: int) -> list[Target]:
        groups: dict[str, list[Piece]] = defaultdict(list)
        for piece in read_pieces(self.file, self.nouns, image_id, height, width, self.notes):
            groups[piece.noun].append(piece)
        class_ = self.classes.get(_synset(self.file.images[image_id]["file_name"]))
        of_class = class_ is not None and len(groups) == 1
        targets: list[Target] = []
        for noun, pieces in groups.items():
            targets += _group([class_, noun] if class_ is not None and of_class else [noun], pieces)
        return targets


def _group(names: Sequence[str], pieces: Sequence[Piece]) -> Iterator[Target]:
    """All objects of one super-category in an image, and their parts.

    Args:
        names: what they are called; the first is the category.
        pieces: their annotations.
    """
    wholes = [piece.mask for piece in pieces if piece.part is None]
    parts: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.part is not None:
            parts[piece.part].append(piece)
    several = len(wholes) > 1 or any(len(parts[part]) > 1 for part in _ONE_EACH & set(parts))
    texts = [text for name in names for text in category_expressions(name, None, several=several)]
    mask = union(wholes or [piece.mask for piece in pieces])
    yield make_target(names[0], "object", names[0], mask, _distinct(texts))
    for part, found in parts.items():
        category = f"{names[0]}:{part}"
        noun = plural(part) if several or _is_several(part, found) else part
        texts = [text for name in names for text in part_expressions(noun, plural(name) if several else name)]
        yield make_target(category, "part", category, union([p.mask for p in found]), _distinct(texts), names[0])


def _is_several(part: str, found: Sequence[Piece]) -> bool:
    """Feet, wings and tires of one object share an annotation, a polygon each; a hidden head may have two as well."""
    polygons = found[0].annotation["segmentation"]
    return part not in _ONE_EACH and (len(found) > 1 or (isinstance(polygons, list) and len(polygons) > 1))


def _distinct(expressions: Sequence[Expression]) -> tuple[Expression, ...]:
    return tuple(dict.fromkeys(expressions))
