"""VIA's JSON (VGG Image Annotator 1 and 2: projects and exports) to image records, with expressions made from the labels."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mres.errors import near, shown
from mres.records import RecordError
from mres.sources.image_folder import ImageFolder
from mres.sources.labelled import Labelled, Region, add_split, labelled_source
from mres.sources.reading import JsonFile, add_paths, need_folder, read_image
from mres.sources.shapes import box, ellipse, flat_points
from mres.sources.source import RecordSource
from mres.sources.via_file import entries_of, label_attribute, regions_of

_NO_AREAS = ("point", "polyline")
_FIELDS = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}


def via(annotations: Path, images: Path, split: str, label: str | None) -> RecordSource:
    """One record for each image that has regions.

    Args:
        annotations: a project, or its annotations exported as JSON.
        label: the region attribute that says what a region is; None: the only one that there is.

    Raises:
        UserError: not VIA's JSON, no such folder, no region, several attributes and none chosen.
    """
    file = JsonFile.read(annotations)
    need_folder(images, "--images")
    entries = entries_of(file)
    label = label_attribute(file, entries, label)
    notes = Counter[str]()
    annotated = [entry for entry in entries if regions_of(entry)]
    if bare := len(entries) - len(annotated):
        notes["images without regions, left out"] = bare
    names = [entry["filename"] for entry in annotated]
    folder = ImageFolder(images, names, notes)

    def read(number: int) -> Labelled:
        where = f"{annotations}: image {names[number]!r}"
        image = read_image(folder, names[number], where)
        regions = regions_of(annotated[number])
        return Labelled(where, image, None, lambda height, width: _regions(regions, label, where, notes))

    about = {"format": "via", "annotations": file.name, "annotations_sha256": file.sha256, "label": label}
    return labelled_source(str(annotations), names, read, split, about, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--annotations", "FILE", "VIA's JSON"), ("--images", "DIR", "the folder of its images"))
    parser.add_argument("--label", metavar="NAME", help="the region attribute that says what a region is, of several")
    add_split(parser)


def _regions(regions: list[Any], label: str, where: str, notes: "Counter[str]") -> Iterator[Region]:
    for number, region in enumerate(regions):
        place = f"{where}: regions[{number}]"
        shape, attributes = (
            region.get(f"{w}_attributes") if isinstance(region, dict) else None for w in ("shape", "region")
        )
        if not isinstance(shape, dict) or not isinstance(attributes, dict):
            raise RecordError(f"{place} is {shown(region)}, expected shape_attributes and region_attributes")
        if shape.get("name") in _NO_AREAS:
            notes["lines and points, left out"] += 1
            continue
        value = attributes.get(label)
        if isinstance(value, dict):  # of checkboxes, the only one that is ticked
            value = next(iter(value)) if len(value) == 1 else value
        if not value or value == "undefined":
            notes[f"regions without a value of '{label}', left out"] += 1
            continue
        yield Region(str(number), value, [_polygon(shape, place)])


def _polygon(shape: dict[str, Any], where: str) -> list[float]:
    name = shape.get("name")
    if name == "polygon":
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise RecordError(f"{where}: all_points_x and all_points_y are not two lists of one length")
        return flat_points([list(point) for point in zip(xs, ys, strict=True)], where)
    if name not in list(_FIELDS):  # it may be anything, also what cannot be hashed
        raise RecordError(f"{where}: the shape is {shown(name)}; {near(str(name), ('polygon', *_FIELDS, *_NO_AREAS))}")
    numbers = flat_points([[shape.get(field), shape.get("theta") or 0] for field in _FIELDS[name]], where)
    x, y, *sizes = numbers[0::2]
    return box(x, y, *sizes) if name == "rect" else ellipse(x, y, sizes[0], sizes[-1], numbers[1])
