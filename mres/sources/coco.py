"""COCO-format part annotations to image records, with expressions made from the category names."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mres.errors import UserError, near
from mres.records import RecordError, Rle, Target
from mres.sources.coco_expressions import category_expressions, position_expressions, whole_expressions
from mres.sources.coco_file import CocoFile, annotation_mask, image_source
from mres.sources.coco_masks import bounding_box, union
from mres.sources.image_folder import plain_path
from mres.sources.object_parts import make_target
from mres.sources.reading import add_choice, add_paths, need_folder
from mres.sources.source import RecordSource

SPLITS = ("train", "val")


def coco_parts(
    annotations: Path,
    images: Path,
    split: str,
    *,
    val_images: int,
    seed: int,
    whole: str | None = "car",
    instances: bool = False,
    separate: Collection[str] = (),
) -> RecordSource:
    """The image records of one split of a COCO part data set.

    Args:
        annotations: the COCO JSON.
        images: the folder of its images; they are looked up by `file_name`, at last by its last part alone.
        split: "train" or "val".
        val_images: how many images are held out.
        seed: which ones; an image's place depends on the seed and its id alone, not on the file's order.
        whole: what all parts of an image belong to; its mask is the union of its parts. None or "": parts only.
        instances: also one target for each of several instances of a part that their position tells apart.
        separate: categories whose polygons are instances of their own, even within one annotation.

    Raises:
        UserError: not a COCO file, no such folder, a split that is empty or unknown. What is wrong with one record
            comes out of the iteration as a `RecordError`.
    """
    file, whole = _checked(annotations, images, split, separate), whole or None
    notes: Counter[str] = Counter()

    def targets_of(image_id: Any, height: int, width: int) -> Iterator[Target]:
        masks = _masks(file, image_id, height, width, frozenset(separate), notes)
        return _targets(masks, whole, instances=instances)

    chosen = _of_split(file, split, val_images, seed)
    about = {
        "val_images": val_images,
        "seed": seed,
        "whole": whole,
        "instances": instances,
        "separate": sorted(separate),
    }
    ids = {image_id: plain_path(entry["file_name"]).name for image_id, entry in file.images.items()}
    source = image_source(file, images, split, file.name, targets_of, about, notes, chosen=chosen, ids=ids)
    return replace(source, description={"format": "coco", **source.description})


def _checked(annotations: Path, images: Path, split: str, separate: Collection[str]) -> CocoFile:
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'; allowed: {', '.join(SPLITS)}")
    need_folder(images, "--images")
    file = CocoFile(annotations)
    file.refuse_same_names(lambda file_name: plain_path(file_name).name)  # they are the records' ids
    if unknown := sorted(set(separate) - set(file.names.values())):
        names = list(file.names.values())
        raise UserError(f"'{annotations}' has no category '{unknown[0]}' (--separate); {near(unknown[0], names)}")
    return file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--annotations", "FILE", "the COCO JSON"), ("--images", "DIR", "the folder of its images"))
    add_choice(parser, "--split", SPLITS, "which of the two")
    parser.add_argument("--val-images", type=int, default=50, metavar="N", help="how many images are held out")
    parser.add_argument("--seed", type=int, default=0, help="which ones are held out")
    parser.add_argument("--whole", default="car", metavar="NAME", help="what the parts belong to; '' for none")
    parser.add_argument(
        "--separate",
        action="append",
        default=[],
        metavar="CATEGORY",
        help="each polygon of this category is an instance of its own; may be repeated",
    )
    parser.add_argument("--instances", action="store_true", help="also single instances told apart by position")


def _of_split(file: CocoFile, split: str, val_images: int, seed: int) -> list[Any]:
    """The ids of the annotated images that belong to a split."""
    annotated = file.annotated()
    if not 0 <= val_images <= len(annotated):
        raise UserError(
            f"cannot hold out {val_images} images (--val-images): the file has {len(annotated)} annotated ones"
        )
    by_hash = sorted(annotated, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())
    held_out = set(by_hash[:val_images])
    chosen = [image_id for image_id in annotated if (image_id in held_out) == (split == "val")]
    if not chosen:
        raise UserError(f"the {split} split of '{file.path}' is empty: {len(annotated)} images, {val_images} held out")
    return chosen


def _masks(
    file: CocoFile, image_id: Any, height: int, width: int, separate: Collection[str], notes: "Counter[str]"
) -> dict[str, list[Rle]]:
    """{category name: mask of each instance}, in the categories' order."""
    masks: dict[str, list[Rle]] = {name: [] for name in file.names.values()}
    for annotation in file.annotations_of[image_id]:
        where, segmentation = file.where(image_id, annotation), annotation.get("segmentation")
        name = file.category(annotation, where)
        polygons = [segmentation]
        if name in separate and isinstance(segmentation, list) and len(segmentation) > 1:
            polygons = [[polygon] for polygon in segmentation]
        found = [mask for one in polygons if (mask := annotation_mask(one, height, width, where, notes)) is not None]
        if not found:
            raise RecordError(f"{where}: its mask covers no pixel")
        masks[name] += found
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
