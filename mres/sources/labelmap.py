"""Semantic label maps (CamVid, Cityscapes, ADE20K, VOC's SegmentationClass, exports of CVAT) to image records.

What belongs to a class is one mask: how many instances it has, a label map does not say.
"""

import argparse
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError
from mres.records import RecordError, encode_mask
from mres.sources.image_folder import ImageFolder
from mres.sources.label_pictures import LabelNames, files_sha256, image_name, read_labels, read_names
from mres.sources.labelled import Labelled, Region, add_split, class_targets, labelled_source
from mres.sources.reading import add_paths, name_of, need_folder, read_image
from mres.sources.source import RecordSource


def labelmap(
    masks: Path, images: Path, names: Path, split: str, ignore: Collection[int], mask_suffix: str, image_suffix: str
) -> RecordSource:
    """One record for each label map below a folder.

    Args:
        masks: the folder of the label maps, subfolders too.
        names: the file that names values or colours (`read_names`).
        ignore: values that are no label, beside what the names call background, void, unlabeled or ignore.
        mask_suffix, image_suffix: what a map's name has before `.png` that its image's has not, and the other way round
            (Cityscapes: `_gtFine_labelIds`, `_leftImg8bit`).

    Raises:
        UserError: no such folder or file, no map with that suffix.
    """
    need_folder(masks, "--masks")
    need_folder(images, "--images")
    known, notes = read_names(names), Counter[str]()
    ending = f"{mask_suffix}.png"
    maps = sorted(path for path in masks.rglob("*") if path.name.lower().endswith(ending.lower()))
    if not maps:
        raise UserError(f"no label map *{ending} in '{masks}' (--masks, --mask-suffix)")
    stems = [path.relative_to(masks).as_posix()[: -len(ending)] + image_suffix for path in maps]
    image_names = [image_name(images, stem, path) for stem, path in zip(stems, maps, strict=True)]
    folder = ImageFolder(images, image_names, notes)

    def read(number: int) -> Labelled:
        where = str(maps[number])
        labels_HW = read_labels(maps[number], known.are_colours, where)
        height, width = labels_HW.shape
        regions = _regions(labels_HW, known, ignore, where, notes)
        return Labelled(where, read_image(folder, image_names[number], where), (height, width), lambda *_: regions)

    about: dict[str, Any] = {"format": "labelmap", "masks": name_of(masks), "masks_sha256": files_sha256(maps, masks)}
    about |= {"names_sha256": known.sha256, "ignore": sorted(ignore)}
    return labelled_source(str(masks), image_names, read, split, about, notes, class_targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(
        parser,
        ("--masks", "DIR", "the folder of the label maps (PNG)"),
        ("--images", "DIR", "the folder of their images"),
        ("--names", "FILE", "what values or colours are called: a name a line, `name,r,g,b`, or JSON {value: name}"),
    )
    parser.add_argument(
        "--ignore", type=int, nargs="*", default=[255], metavar="VALUE", help="values that are no label"
    )
    parser.add_argument(
        "--mask-suffix", default="", metavar="TEXT", help="what a map's name has before .png, its image's not"
    )
    parser.add_argument(
        "--image-suffix", default="", metavar="TEXT", help="what an image's name has that its map's has not"
    )
    add_split(parser)


def _regions(
    labels_HW: np.ndarray, known: LabelNames, ignore: Collection[int], where: str, notes: "Counter[str]"
) -> list[Region]:
    regions, unknown = [], []
    for value in np.unique(labels_HW).tolist():
        if value in ignore and not known.are_colours:
            continue
        if value not in known.names:
            unknown.append(f"#{value:06x}" if known.are_colours else value)
        elif known.is_ignored(value):
            notes["areas of no class (background, void, unlabeled, ignore, _…), left out"] += 1
        else:
            regions.append(Region(str(value), known.names[value], encode_mask(labels_HW == value)))
    if unknown:
        raise RecordError(f"{where}: values without a name: {', '.join(map(str, unknown[:8]))} (--names, --ignore)")
    return regions
