"""COCO-format part annotations to image records, with expressions made from the category names."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError, near
from mres.records import Expression, Granularity, ImageRecord, RecordError, Rle, Target
from mres.sources.coco_expressions import category_expressions, position_expressions, whole_expressions
from mres.sources.coco_file import CocoFile, annotation_mask, read_image
from mres.sources.coco_masks import bounding_box, union
from mres.sources.source import Source

SPLITS = ("train", "val")


def coco_parts(
    annotations: Path,
    images: Path,
    *,
    split: str,
    val_images: int,
    seed: int,
    whole: str | None = "car",
    instances: bool = False,
    separate: Collection[str] = (),
) -> Source:
    """The image records of one split of a COCO part data set.

    Args:
        annotations: the COCO JSON.
        images: the folder of its images; they are looked up by `file_name`, at last by its last part alone.
        split: "train" or "val".
        val_images: how many images are held out.
        seed: which ones; an image's place depends on the seed and its id alone, not on the file's order.
        whole: what all parts of an image belong to; its mask is the union of its parts. None: parts only.
        instances: also one target for each of several instances of a part that their position tells apart.
        separate: categories whose polygons are instances of their own, even within one annotation.

    Raises:
        UserError: not a COCO file, no such folder, a split that is empty or unknown. What is wrong with one record
            comes out of the iteration as a `RecordError`.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'; allowed: {', '.join(SPLITS)}")
    if not images.is_dir():
        raise UserError(f"no folder of images at '{images}' (--images)")
    file = CocoFile(annotations)
    file.refuse_same_names(lambda file_name: PurePosixPath(file_name).name)  # they are the records' ids
    if unknown := sorted(set(separate) - set(file.names.values())):
        names = list(file.names.values())
        raise UserError(f"'{annotations}' has no category '{unknown[0]}' (--separate); {near(unknown[0], names)}")
    annotated = [image_id for image_id in file.images if file.annotations_of[image_id]]
    held_out = _held_out(annotated, val_images, seed)
    chosen = [image_id for image_id in annotated if (image_id in held_out) == (split == "val")]
    if not chosen:
        raise UserError(
            f"the {split} split of '{annotations}' is empty: {len(annotated)} images, {val_images} held out"
        )
    notes: Counter[str] = Counter()
    if bare := len(file.images) - len(annotated):
        notes["images without annotations, left out"] = bare
    maker = _Maker(file, images, split, whole, instances, frozenset(separate), notes)
    description = {
        "format": "coco",
        "annotations": file.name,
        "annotations_sha256": file.sha256,
        "split": split,
        "val_images": val_images,
        "seed": seed,
        "whole": whole,
        "instances": instances,
        "separate": sorted(separate),
    }
    items: list[Any] = [*file.errors, *chosen]
    return Source(str(annotations), len(items), lambda number: maker.record(items[number]), description, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations", type=Path, required=True, default=argparse.SUPPRESS, metavar="FILE", help="the COCO JSON"
    )
    parser.add_argument(
        "--images", type=Path, required=True, default=argparse.SUPPRESS, metavar="DIR", help="the folder of its images"
    )
    parser.add_argument("--split", choices=SPLITS, required=True, default=argparse.SUPPRESS, help="which of the two")
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


def from_arguments(arguments: argparse.Namespace) -> Source:
    return coco_parts(
        arguments.annotations,
        arguments.images,
        split=arguments.split,
        val_images=arguments.val_images,
        seed=arguments.seed,
        whole=arguments.whole or None,
        instances=arguments.instances,
        separate=arguments.separate,
    )


def _held_out(image_ids: list[Any], val_images: int, seed: int) -> set[Any]:
    if not 0 <= val_images <= len(image_ids):
        raise UserError(
            f"cannot hold out {val_images} images (--val-images): the file has {len(image_ids)} annotated ones"
        )
    by_hash = sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())
    return set(by_hash[:val_images])


@dataclass(frozen=True)
class _Maker:
    """Makes records out of the entries of a `CocoFile`."""

    file: CocoFile
    images: Path
    split: str
    whole: str | None
    instances: bool
    separate: frozenset[str]
    notes: "Counter[str]"

    def record(self, image_id: Any) -> ImageRecord:
        """The record of an image; an annotation that belongs to none comes as its `RecordError` and is raised."""
        if isinstance(image_id, RecordError):
            raise image_id
        file_name = self.file.images[image_id]["file_name"]
        where = self.file.where(image_id)
        height, width = self.file.size(image_id, where)
        image = read_image(self.images, file_name, where)
        targets = tuple(self._targets(self._masks(image_id, height, width)))
        return ImageRecord(PurePosixPath(file_name).name, image, width, height, self.split, self.file.name, targets)

    def _masks(self, image_id: Any, height: int, width: int) -> dict[str, list[Rle]]:
        """{category name: mask of each instance}, in the categories' order."""
        masks: dict[str, list[Rle]] = {name: [] for name in self.file.names.values()}
        for annotation in self.file.annotations_of[image_id]:
            where = self.file.where(image_id, annotation)
            name = self.file.category(annotation, where)
            masks[name] += self._instances(annotation.get("segmentation"), name, height, width, where)
        return {name: found for name, found in masks.items() if found}

    def _instances(self, segmentation: Any, name: str, height: int, width: int, where: str) -> list[Rle]:
        """The masks of one annotation: one, or one a polygon where these are `separate`."""
        pieces = [segmentation]
        if name in self.separate and isinstance(segmentation, list) and len(segmentation) > 1:
            pieces = [[polygon] for polygon in segmentation]
        found = [annotation_mask(piece, height, width, where, self.notes) for piece in pieces]
        masks = [mask for mask in found if mask is not None]
        if not masks:
            raise RecordError(f"{where}: its mask covers no pixel")
        return masks

    def _targets(self, masks: dict[str, list[Rle]]) -> Iterator[Target]:
        whole = self.whole
        if whole is not None:
            everything = union([mask for found in masks.values() for mask in found])
            yield _target(whole, "object", whole, everything, whole_expressions(whole), None)
        for name, found in masks.items():
            category = f"{whole}:{name}" if whole else name
            expressions = category_expressions(name, whole, several=len(found) > 1)
            yield _target(name, "part", category, union(found), expressions, whole)
            if self.instances and len(found) > 1:
                boxes = [bounding_box(mask) for mask in found]
                for index, texts in position_expressions(name, whole, boxes, found[0].width).items():
                    yield _target(f"{name}.{index}", "part", category, found[index], texts, whole)


def _target(
    id_: str,
    granularity: Granularity,
    category: str,
    mask: Rle,
    expressions: tuple[Expression, ...],
    parent: str | None,
) -> Target:
    return Target(id_, granularity, category, mask, bounding_box(mask), expressions, parent)
