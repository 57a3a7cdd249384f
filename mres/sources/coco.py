"""COCO-format part annotations to image records, with expressions made from the category names."""

import argparse
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mres.errors import UserError, near
from mres.records import Rle, Target
from mres.sources.coco_expressions import category_expressions, noun_of, position_expressions, whole_expressions
from mres.sources.coco_file import CocoFile, image_source
from mres.sources.coco_masks import bounding_box, is_held_out, union
from mres.sources.coco_splits import SPLITS, held_out_images, images_of_list, need_split
from mres.sources.image_folder import plain_path
from mres.sources.object_parts import MaskReader, make_target
from mres.sources.reading import add_choice, add_paths, need_folder
from mres.sources.source import RecordSource


def coco_parts(
    annotations: Path,
    images: Path,
    split: str,
    *,
    val_images: int,
    seed: int,
    test_images: int = 0,
    split_file: Path | None = None,
    all_images: bool = False,
    whole: str | None = "car",
    instances: bool = False,
    separate: Collection[str] = (),
) -> RecordSource:
    """The image records of one split of a COCO part data set.

    Args:
        annotations: the COCO JSON.
        images: the folder of its images, which are found by `file_name` (`image_folder.py`).
        split: "train", "val" or "test".
        val_images, test_images: how many images are held out for the two.
        seed: which ones; an image's place depends on the seed and its id alone, not on the file's order.
        split_file: a list of the split's images, one a line; nothing is held out then.
        all_images: the file is the split as it stands.
        whole: what all parts of an image belong to; its mask is the union of its parts. None or "": parts only.
        instances: also one target for each of several instances of a part that their position tells apart.
        separate: categories whose polygons are instances of their own, even within one annotation.

    Raises:
        UserError: not a COCO file, no such folder, a split that is empty or unknown. What is wrong with one record
            comes out of the iteration as a `RecordError`.
    """
    file, whole = _checked(annotations, images, split, separate, whole or None), whole or None
    notes: Counter[str] = Counter()
    nouns = {name: (name, None) for name in file.names.values()}
    reader = MaskReader(file, nouns, notes, is_held_out(split))

    def targets_of(image_id: Any, height: int, width: int) -> Iterator[Target]:
        masks = _masks(reader, frozenset(separate), image_id, height, width)
        return _targets(masks, whole, instances=instances) if masks else iter(())

    about: dict[str, Any] = {"val_images": val_images, "seed": seed}
    if split_file is not None and all_images:
        raise UserError("--split-file and --all-images say two things of the split; give one of them")
    if split_file is not None:
        chosen, sha256 = images_of_list(file, split_file, notes)
        about = {"split_file": split_file.name, "split_file_sha256": sha256}
    elif all_images:
        chosen, about = file.annotated(), {"all_images": True}
    else:
        chosen = held_out_images(file, split, val_images, test_images, seed)
        about |= {"test_images": test_images} if test_images else {}
    about |= {"whole": whole, "instances": instances, "separate": sorted(separate)}
    source = image_source(file, images, split, file.name, targets_of, about, notes, chosen=chosen, ids=_ids(file))
    return replace(source, description={"format": "coco", **source.description})


def _ids(file: CocoFile) -> dict[Any, str]:
    """The images' names; of all with folders, where they would repeat."""
    paths = {image_id: plain_path(entry["file_name"]) for image_id, entry in file.images.items()}
    repeat = len({path.name for path in paths.values()}) < len(paths)
    return {image_id: str(path) if repeat else path.name for image_id, path in paths.items()}


def _checked(annotations: Path, images: Path, split: str, separate: Collection[str], whole: str | None) -> CocoFile:
    need_split(split)
    need_folder(images, "--images")
    file = CocoFile(annotations)
    if unknown := sorted(set(separate) - set(file.names.values())):
        names = list(file.names.values())
        raise UserError(f"'{annotations}' has no category '{unknown[0]}' (--separate); {near(unknown[0], names)}")
    used = {annotation["category_id"] for found in file.annotations_of.values() for annotation in found}
    same = [file.names[id_] for id_ in used if whole and noun_of(file.names[id_]) == noun_of(whole)]
    if same:
        raise UserError(
            f"'{annotations}' has a category '{same[0]}', and '{whole}' is what all parts together are called (--whole); "
            "name the whole otherwise (--whole other), or leave it out (--whole '')"
        )
    return file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--annotations", "FILE", "the COCO JSON"), ("--images", "DIR", "the folder of its images"))
    add_choice(parser, "--split", SPLITS, "which of them")
    parser.add_argument("--val-images", type=int, default=50, metavar="N", help="how many images are held out for val")
    parser.add_argument("--test-images", type=int, default=0, metavar="N", help="how many more are held out for test")
    parser.add_argument("--seed", type=int, default=0, help="which ones are held out")
    parser.add_argument("--split-file", type=Path, metavar="FILE", help="lists the split's images; holds nothing out")
    parser.add_argument("--all-images", action="store_true", help="the file is the split as it stands")
    parser.add_argument("--whole", default="car", metavar="NAME", help="what the parts belong to; '' for none")
    parser.add_argument(
        "--separate",
        action="append",
        default=[],
        metavar="CATEGORY",
        help="each polygon of this category is an instance of its own; may be repeated",
    )
    parser.add_argument("--instances", action="store_true", help="also single instances told apart by position")


def _masks(
    reader: MaskReader, separate: Collection[str], image_id: Any, height: int, width: int
) -> dict[str, list[Rle]]:
    """{category name: mask of each instance}, in the categories' order."""
    masks: dict[str, list[Rle]] = {name: [] for name in reader.file.names.values()}
    for one in reader.masks(image_id, height, width):
        masks[one.noun] += one.pieces if one.noun in separate and one.pieces else [one.mask]
    return {name: found for name, found in masks.items() if found}


def _targets(masks: dict[str, list[Rle]], whole: str | None, *, instances: bool) -> Iterator[Target]:
    if whole is not None:
        everything = union([mask for found in masks.values() for mask in found])
        yield make_target(whole, "object", whole, everything, whole_expressions(whole))
    for name, found in masks.items():
        category = f"{whole}:{name}" if whole else name
        expressions = category_expressions(name, whole, several=len(found) > 1)
        yield make_target(name, "part", category, union(found), expressions, whole)
        if instances and len(found) > 1:
            boxes = [bounding_box(mask) for mask in found]
            for index, texts in position_expressions(name, whole, boxes, found[0].width).items():
                yield make_target(f"{name}.{index}", "part", category, found[index], texts, whole)
