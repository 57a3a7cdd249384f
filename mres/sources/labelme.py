"""LabelMe's JSON files (and X-AnyLabeling's, which have its form) to image records, with expressions made from the labels."""

import argparse
import math
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import near, shown
from mres.records import RecordError
from mres.sources.image_folder import ImageFolder
from mres.sources.json_folder import JsonFolder, size_of
from mres.sources.labelled import Labelled, Region, add_split, labelled_source
from mres.sources.other_json import what_it_is
from mres.sources.reading import add_paths, name_of, need_folder, read_image
from mres.sources.shapes import box, ellipse, flat_points, from_base64, picture_mask
from mres.sources.source import RecordSource

_AREAS = ("polygon", "rectangle", "rotation", "circle", "mask")
_NO_AREAS = ("line", "linestrip", "point", "points")


def labelme(annotations: Path, images: Path | None, split: str) -> RecordSource:
    """One record for each JSON file below a folder.

    Args:
        annotations: the folder; subfolders belong to it.
        images: the folder of the images where `imagePath` is not relative to the JSON file, or the images were moved.

    Raises:
        UserError: no such folder, no JSON in it. What is wrong with one file comes out as a `RecordError`.
    """
    files = JsonFolder(annotations, "*.json", lambda value: value.get("imagePath"), "--annotations")
    if images is not None:
        need_folder(images, "--images")
    notes = Counter[str]()
    names = [  # normalised: "../a.jpg" of several folders is one image
        posixpath.normpath(PurePosixPath(f).parent / key.replace("\\", "/"))
        for f, key in zip(files.files, files.keys, strict=True)
    ]
    folder = ImageFolder(images or annotations, names, notes)

    def read(number: int) -> Labelled:
        value, where = files.value(number), files.where(number)
        if "shapes" not in value:
            raise RecordError(f"{where}: not LabelMe's JSON: it has no 'shapes'{what_it_is(value)}")
        size = size_of(value, "imageHeight", "imageWidth", where)
        if value.get("imageData"):  # as LabelMe itself prefers
            image = from_base64(value["imageData"], f"{where}: imageData")
        elif files.keys[number]:
            image = read_image(folder, names[number], where)
        else:
            raise RecordError(f"{where}: it has neither imagePath nor imageData")
        return Labelled(
            where, image, size, lambda height, width: _regions(value.get("shapes"), height, width, where, notes)
        )

    about = {"format": "labelme", "annotations": name_of(annotations), "annotations_sha256": files.sha256}
    return labelled_source(str(annotations), files.files, read, split, about, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--annotations", "DIR", "the folder of the JSON files, subfolders too"))
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder of the images, if not beside the JSON files"
    )
    add_split(parser)


def _regions(shapes: Any, height: int, width: int, where: str, notes: "Counter[str]") -> Iterator[Region]:
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise RecordError(f"{where}: 'shapes' is {shown(shapes)}, expected a list of shapes")
    for number, shape in enumerate(shapes):
        kind, place = shape.get("shape_type") or "polygon", f"{where}: shapes[{number}]"
        if kind in _NO_AREAS:
            notes["lines and points, left out"] += 1
            continue
        if kind not in _AREAS:
            raise RecordError(f"{place}: the shape_type is {shown(kind)}; {near(str(kind), (*_AREAS, *_NO_AREAS))}")
        group, said = shape.get("group_id"), shape.get("description")
        id_ = str(number) if group is None else f"group{group}"
        texts = (said.strip(),) if isinstance(said, str) and said.strip() else ()
        yield Region(id_, shape.get("label"), _area(kind, shape, (height, width), place, notes), texts)


def _area(kind: str, shape: dict[str, Any], size: tuple[int, int], where: str, notes: "Counter[str]") -> Any:
    points = flat_points(shape.get("points"), where)
    if kind == "mask" and len(points) >= 2:
        return picture_mask(from_base64(shape.get("mask"), where), points[0], points[1], size, where, notes)
    if kind == "circle" and len(points) == 4:
        radius = math.hypot(points[2] - points[0], points[3] - points[1])
        return [ellipse(points[0], points[1], radius, radius)]
    if kind == "rectangle" and len(points) == 4:
        (left, right), (top, bottom) = sorted(points[0::2]), sorted(points[1::2])
        return [box(left, top, right - left, bottom - top)]
    if kind in ("mask", "circle") or (kind == "rectangle" and len(points) != 8):
        raise RecordError(f"{where}: a {kind} of {len(points) // 2} points")
    return [points]
