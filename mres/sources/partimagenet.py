"""PartImageNet (ImageNet photographs, 11 super-categories with parts) to image records."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.files import read_regular
from mres.records import Target
from mres.sources.coco_expressions import category_expressions, noun_of, part_expressions, plural
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.coco_masks import is_held_out, union
from mres.sources.image_folder import plain_path
from mres.sources.object_parts import AnnotatedMask, MaskReader, Nouns, make_target
from mres.sources.source import RecordSource

SUPER_CATEGORIES = (
    *("Quadruped", "Biped", "Fish", "Bird", "Snake", "Reptile"),
    *("Car", "Bicycle", "Boat", "Aeroplane", "Bottle"),
)
_SPELLED = {"tier": "tire"}  # the files' "Car Tier"
_MAX_SYNSETS = 1 << 26  # bytes
_ONE_EACH = {"head", "body", "tail", "seat", "mouth"}  # several of them are several objects


def partimagenet(annotations: Path, images: Path, split: str, synsets: Path | None = None) -> RecordSource:
    """The image records of one file of PartImageNet.

    An object's mask is that of its super-category ("Quadruped") where the file has it, else the union of its parts.

    Args:
        annotations, images: the JSON and the folder of its images.
        split: the name that the records carry.
        synsets: ImageNet's `LOC_synset_mapping.txt`; objects are then also called by their class ("tiger").

    Raises:
        UserError: not a PartImageNet file, no such folder, no annotated image, a class that `synsets` lacks.
    """
    file = CocoFile(annotations)
    nouns, notes = _nouns(file), Counter[str]()
    classes = {} if synsets is None else _classes(file, synsets)
    for entry in file.images.values():
        entry["file_name"] = _place(entry["file_name"])
    targets_of = partial(_targets, MaskReader(file, nouns, notes, is_held_out(split)), classes)
    description = {"format": "partimagenet", "synsets": None if synsets is None else synsets.name}
    return image_source(file, images, split, "partimagenet", targets_of, description, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images, flat or one folder a class")
    parser.add_argument(
        "--synsets",
        type=Path,
        metavar="FILE",
        help="ImageNet's LOC_synset_mapping.txt: also call objects by their class",
    )


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
    return plain_path(file_name).name.split("_")[0]


def _place(file_name: str) -> str:
    """Images lie in one folder a class, as in ImageNet, or in one folder."""
    return file_name if len(plain_path(file_name).parts) > 1 else f"{_synset(file_name)}/{file_name}"


def _classes(file: CocoFile, synsets: Path) -> dict[str, str]:
    """{synset id: its class's first name} for all images of the file."""
    try:
        lines = read_regular(synsets, _MAX_SYNSETS).decode("utf-8").splitlines()
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


def _targets(reader: MaskReader, classes: Mapping[str, str], image_id: Any, height: int, width: int) -> list[Target]:
    groups: dict[str, list[AnnotatedMask]] = defaultdict(list)
    for one in reader.masks(image_id, height, width):
        groups[one.noun].append(one)
    class_ = classes.get(_synset(reader.file.images[image_id]["file_name"])) if len(groups) == 1 else None
    targets: list[Target] = []
    for noun, masks in groups.items():
        targets += _group([noun] if class_ is None else [class_, noun], masks)
    return targets


def _group(names: Sequence[str], masks: Sequence[AnnotatedMask]) -> Iterator[Target]:
    """All objects of one super-category in an image, and their parts.

    Args:
        names: what they are called; the first is the category.
        masks: their annotations.
    """
    wholes = [one.mask for one in masks if one.part is None]
    parts: dict[str, list[AnnotatedMask]] = defaultdict(list)
    for one in masks:
        if one.part is not None:
            parts[one.part].append(one)
    several = len(wholes) > 1 or any(len(parts[part]) > 1 for part in _ONE_EACH & set(parts))
    texts = [text for name in names for text in category_expressions(name, None, several=several)]
    mask = union(wholes or [one.mask for one in masks])
    yield make_target(names[0], "object", names[0], mask, tuple(dict.fromkeys(texts)))
    for part, found in parts.items():
        category = f"{names[0]}:{part}"
        noun = plural(part) if several or _is_several(part, found) else part
        texts = [text for name in names for text in part_expressions(noun, plural(name) if several else name)]
        mask, expressions = union([one.mask for one in found]), tuple(dict.fromkeys(texts))
        yield make_target(category, "part", category, mask, expressions, names[0])


def _is_several(part: str, found: Sequence[AnnotatedMask]) -> bool:
    """Feet, wings and tires of one object share an annotation, a polygon each; a hidden head may have two as well."""
    return part not in _ONE_EACH and (len(found) > 1 or len(found[0].pieces) > 1)
