"""Supervisely's projects (bitmaps, polygons with holes, rectangles) to image records, with expressions made from the classes."""

import argparse
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import near, shown
from mres.records import RecordError
from mres.sources.coco_masks import annotation_mask
from mres.sources.image_folder import ImageFolder
from mres.sources.json_folder import JsonFolder, size_of
from mres.sources.labelled import Labelled, Region, add_split, labelled_source
from mres.sources.other_json import what_it_is
from mres.sources.reading import add_paths, name_of, read_image
from mres.sources.shapes import box, flat_points, from_base64, picture_mask, without
from mres.sources.source import RecordSource

_AREAS = ("bitmap", "polygon", "rectangle")
_NO_AREAS = ("point", "line", "polyline", "graph", "cuboid", "cuboid_2d", "any", "alpha_mask")
_MAX_BITMAP_BYTES = 1 << 26


def supervisely(root: Path, split: str) -> RecordSource:
    """One record for each image of a project in Supervisely's format: `<data set>/ann/<image>.json`, `<data set>/img/<image>`.

    Raises:
        UserError: no such folder, no annotation in it. What is wrong with one file comes out as a `RecordError`.
    """
    files = JsonFolder(root, "ann/*.json", lambda value: "", "--root")
    notes = Counter[str]()
    paths = [PurePosixPath(name) for name in files.files]
    names = [str(path.parent.parent / "img" / path.stem) for path in paths]
    folder = ImageFolder(root, names, notes)

    def read(number: int) -> Labelled:
        value, where = files.value(number), files.where(number)
        if not isinstance(size := value.get("size"), dict):
            raise RecordError(f"{where}: 'size' is {shown(size)}, expected {{'height', 'width'}}{what_it_is(value)}")
        image = read_image(folder, names[number], where)
        return Labelled(
            where,
            image,
            size_of(size, "height", "width", where),
            lambda height, width: _regions(value.get("objects"), height, width, where, notes),
        )

    about = {"format": "supervisely", "annotations": name_of(root), "annotations_sha256": files.sha256}
    return labelled_source(str(root), names, read, split, about, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--root", "DIR", "the project's folder, or one of its data sets'"))
    add_split(parser)


def _regions(objects: Any, height: int, width: int, where: str, notes: "Counter[str]") -> Iterator[Region]:
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise RecordError(f"{where}: 'objects' is {shown(objects)}, expected a list of objects")
    for number, one in enumerate(objects):
        kind, place = one.get("geometryType"), f"{where}: objects[{number}]"
        if kind in _NO_AREAS:
            notes[f"objects of the geometry {kind}, left out"] += 1
            continue
        if kind not in _AREAS:
            raise RecordError(f"{place}: the geometryType is {shown(kind)}; {near(str(kind), (*_AREAS, *_NO_AREAS))}")
        yield Region(str(number), one.get("classTitle"), _area(kind, one, (height, width), place, notes))


def _area(kind: str, one: dict[str, Any], size: tuple[int, int], where: str, notes: "Counter[str]") -> Any:
    if kind == "bitmap":
        bitmap = one.get("bitmap")
        bitmap = bitmap if isinstance(bitmap, dict) else {}
        origin = flat_points([bitmap.get("origin")], f"{where}: bitmap.origin")
        return picture_mask(_inflated(bitmap.get("data"), where), origin[0], origin[1], size, where, notes)
    points = one.get("points")
    points = points if isinstance(points, dict) else {}
    exterior = flat_points(points.get("exterior"), where)
    if kind == "rectangle":
        if len(exterior) != 4:
            raise RecordError(f"{where}: a rectangle of {len(exterior) // 2} points, expected two corners")
        (left, right), (top, bottom) = sorted(exterior[0::2]), sorted(exterior[1::2])
        return [box(left, top, right - left, bottom - top)]
    holes_given = points.get("interior") or []
    if not isinstance(holes_given, list):
        raise RecordError(f"{where}: 'interior' is {shown(holes_given)}, expected a list of holes")
    interior = [flat_points(hole, where) for hole in holes_given]
    outer = annotation_mask([exterior], *size, where, notes)
    holes = annotation_mask(interior, *size, where, notes) if interior else None
    return without(outer, holes) if outer and holes else outer


def _inflated(data: Any, where: str) -> bytes:
    """The PNG of a bitmap: zlib's in base64."""
    try:
        return zlib.decompressobj().decompress(from_base64(data, f"{where}: bitmap.data"), _MAX_BITMAP_BYTES)
    except zlib.error as error:
        raise RecordError(f"{where}: bitmap.data is no zlib data in base64 ({error})") from None
