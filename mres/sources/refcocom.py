"""RefCOCOm, the part benchmark (`annotations/<split>_<setting>.json`, `masks/<segment id>.png`), to image records.

What is a part? In `part_only` everything. In `object_part` what stands in the same split's `part_only` too, by image
and segment id, and all else is an object: `object_part` is RefCOCO's objects and `part_only`'s parts together, and no
field that says which is known.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.records import Granularity
from mres.sources.coco_names import COCO_NAMES
from mres.sources.cris_files import EntryFile, file_source
from mres.sources.cris_tables import Segment, read_segment
from mres.sources.reading import add_choice, add_paths
from mres.sources.source import RecordSource

SPLITS = ("val", "testA", "testB")
SETTINGS = ("part_only", "object_part")
_CATEGORY_FIELDS = ("category", "category_name", "part", "part_name", "cat_name", "cat")


def refcocom(root: Path, *, split: str, setting: str, images: Path | None = None) -> RecordSource:
    """The image records of one split and setting.

    Args:
        root: the unpacked benchmark; its folders are found under any case, as is a part of it beside it
            (`RefCOCOm/annotations` with `Refcocom/masks`).
        split: "val", "testA" or "testB"; there is no train split.
        setting: "part_only" or "object_part".
        images: the folder of the images; None: the benchmark's own.

    Raises:
        UserError: a file or folder that is not there or not of this form. What is wrong with one entry comes out of the
            iteration as a `RecordError`, first.
    """
    annotations = _folder(root, "annotations")
    file = _read(annotations, split, setting)
    description: dict[str, Any] = {"format": "refcocom", "setting": setting}
    parts = None
    if setting == "object_part":
        part_file = _read(annotations, split, "part_only")
        parts = set(map(_key, part_file.entries))
        if parts.isdisjoint(map(_key, file.entries)):
            raise UserError(
                f"'{file.path}' has no segment (image and id) of '{part_file.path}', so its parts cannot be told from "
                f"its objects; are both files of one release?"
            )
        description["part_only_sha256"] = part_file.sha256
    notes: Counter[str] = Counter()
    if parts is not None and (absent := len(parts.difference(map(_key, file.entries)))):
        notes["segments of part_only that object_part lacks"] = absent

    def parse(number: int, entry: dict[str, Any], where: str) -> Segment:
        granularity: Granularity = "part" if parts is None or _key(entry) in parts else "object"
        category = _category(entry, granularity)
        return read_segment(number, entry, where, notes, granularity=granularity, category=category)

    return file_source(
        file,
        file.segments(parse),
        _folder(root, "masks"),
        images or _folder(root, "images"),
        split=split,
        source=f"refcocom ({setting})",
        description=description,
        notes=notes,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--root", "DIR", "the unpacked benchmark"))
    add_choice(parser, "--split", SPLITS, "which split")
    add_choice(parser, "--setting", SETTINGS, "parts alone, or objects and parts")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images; <root>/images by default")


def _read(annotations: Path, split: str, setting: str) -> EntryFile:
    for name, given, known in (("split", split, SPLITS), ("setting", setting, SETTINGS)):
        if given not in known:
            raise UserError(f"unknown {name} '{given}'; allowed: {', '.join(known)}")
    needed = "the benchmark has it"
    if setting == "part_only":
        needed += ", and object_part needs it too, to tell parts from objects"
    return EntryFile.read(annotations / f"{split}_{setting}.json", needed)


def _folder(root: Path, name: str) -> Path:
    """The benchmark's folder of this name in any case, in `root` or in a folder beside it of the same name but for case."""
    for candidate in _same_but_for_case(root.absolute()):
        for child in _same_but_for_case(candidate / name):
            return child
    raise UserError(f"'{root}' (--root) has no folder '{name}'; expected annotations, masks and images in it")


def _same_but_for_case(path: Path) -> Iterator[Path]:
    """Folders that are `path` if case is ignored, itself first."""
    if path.is_dir():
        yield path
    if path.parent.is_dir():
        for other in sorted(path.parent.iterdir()):
            if other.name.lower() == path.name.lower() and other.name != path.name and other.is_dir():
                yield other


def _key(entry: dict[str, Any]) -> tuple[str, str]:
    """An entry's image and segment; ids are numbers in some files and text in others."""
    return str(entry.get("img_name")), str(entry.get("segment_id"))


def _category(entry: dict[str, Any], granularity: Granularity) -> str:
    """A name where the entry has one; a number is a place in COCO's list for objects and has no known meaning for parts."""
    for field in _CATEGORY_FIELDS:
        if isinstance(entry.get(field), str) and entry[field].strip():
            return str(entry[field].strip())
    cat = entry.get("cat")
    if granularity == "object" and type(cat) is int and 0 <= cat < len(COCO_NAMES):
        return COCO_NAMES[cat]
    return granularity
