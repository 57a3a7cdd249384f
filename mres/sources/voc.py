"""Pascal VOC's segmentations (SegmentationObject with SegmentationClass) to image records, with expressions made from the classes."""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from mres.errors import UserError, near
from mres.io.files import read_regular
from mres.records import RecordError, encode_mask
from mres.sources.image_folder import ImageFolder
from mres.sources.label_pictures import LabelNames, files_sha256, read_labels, read_names
from mres.sources.labelled import Labelled, Region, labelled_source
from mres.sources.reading import add_paths, name_of, need_folder, read_image
from mres.sources.source import RecordSource

_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
_VOID = 255
_MAX_LIST_BYTES = 1 << 26


def voc(root: Path, split: str, names: Path | None) -> RecordSource:
    """One record for each image of `ImageSets/Segmentation/<split>.txt`.

    An object's class is the one that most of its pixels have in SegmentationClass. The white border between objects
    (255) belongs to none.

    Args:
        root: the folder with JPEGImages, SegmentationClass, SegmentationObject and ImageSets (`VOCdevkit/VOC2012`).
        names: what the values of SegmentationClass are called, where they are not VOC's twenty classes.

    Raises:
        UserError: no such folder, no such split.
    """
    classes, objects = root / "SegmentationClass", root / "SegmentationObject"
    for folder in (root / "JPEGImages", classes, objects):
        need_folder(folder, "--root")
    known = read_names(names) if names else LabelNames(dict(enumerate(_NAMES)), False, "")
    if known.are_colours:
        raise UserError(f"'{names}' names colours; SegmentationClass holds numbers (--names)")
    ids, notes = _listed(root, split), Counter[str]()
    images = ImageFolder(root / "JPEGImages", [f"{id_}.jpg" for id_ in ids], notes)

    def read(number: int) -> Labelled:
        name = f"{ids[number]}.png"
        where = f"{root}: image {ids[number]!r}"
        class_HW, object_HW = (read_labels(folder / name, False, where) for folder in (classes, objects))
        if class_HW.shape != object_HW.shape:
            raise RecordError(f"{where}: SegmentationClass is {class_HW.shape}, SegmentationObject {object_HW.shape}")
        height, width = class_HW.shape
        regions = _regions(class_HW, object_HW, known, where, notes)
        return Labelled(where, read_image(images, f"{ids[number]}.jpg", where), (height, width), lambda *_: regions)

    pictures = [path for id_ in ids for path in (classes / f"{id_}.png", objects / f"{id_}.png") if path.is_file()]
    about = {
        "format": "voc",
        "root": name_of(root),
        "masks_sha256": files_sha256(pictures, root),
        "names_sha256": known.sha256,
    }
    return labelled_source(str(root), [f"{id_}.jpg" for id_ in ids], read, split, about, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--root", "DIR", "VOCdevkit/VOC2012, or a folder of that form"))
    parser.add_argument("--split", default="train", metavar="NAME", help="a list of ImageSets/Segmentation")
    parser.add_argument("--names", type=Path, metavar="FILE", help="class names, one a line, if not VOC's twenty")


def _listed(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    need_folder(folder, "--root")
    splits = sorted(path.stem for path in folder.glob("*.txt"))
    if split not in splits:
        raise UserError(f"no list '{split}.txt' in '{folder}' (--split); {near(split, splits)}")
    try:
        text = read_regular(folder / f"{split}.txt", _MAX_LIST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{folder / split}.txt' cannot be read: {error}") from None
    ids = text.split()
    if not ids or len(set(ids)) < len(ids) or any("/" in id_ or "\\" in id_ for id_ in ids):
        raise UserError(f"'{folder / split}.txt' is no list of image names, one a line, each once")
    return ids


def _regions(
    class_HW: np.ndarray, object_HW: np.ndarray, known: LabelNames, where: str, notes: "Counter[str]"
) -> list[Region]:
    regions = []
    for number in np.unique(object_HW).tolist():
        if number in (0, _VOID):
            continue
        is_object_HW = object_HW == number
        values, counts = np.unique(class_HW[is_object_HW & (class_HW != _VOID)], return_counts=True)
        value = int(values[counts.argmax()]) if len(values) else 0
        if value not in known.names:
            raise RecordError(f"{where}: object {number} is of class {value}, which has no name (--names)")
        if known.is_ignored(value):
            notes["objects without a class, left out"] += 1
        else:
            regions.append(Region(str(number), known.names[value], encode_mask(is_object_HW)))
    return regions
