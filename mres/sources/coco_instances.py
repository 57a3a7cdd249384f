"""Objects of COCO-style instance files (COCO, LVIS, Objects365 with masks) to image records."""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

from mres.errors import UserError
from mres.sources.coco_expressions import noun_of
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.object_parts import Nouns, drop_slivers, object_targets
from mres.sources.source import RecordSource


def coco_instances(annotations: Path, images: Path, split: str) -> RecordSource:
    """The image records of one file of instances, with expressions made from the category names.

    Raises:
        UserError: not a COCO file, boxes without masks, no such folder, no annotated image.
    """
    file = CocoFile(annotations)
    nouns: Nouns = {name: (noun_of(name), None) for name in file.names.values()}
    if unnamed := next((name for name, (noun, _) in nouns.items() if not noun), None):
        raise UserError(f"'{file.path}': nothing can be called '{unnamed}', the name of a category")
    _need_masks(file)
    notes: Counter[str] = Counter()
    drop_slivers(file, notes)
    targets_of = partial(object_targets, file, nouns, notes)
    return image_source(file, images, split, file.name, targets_of, {"format": "instances"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder of its images")


def _need_masks(file: CocoFile) -> None:
    annotations = [annotation for found in file.annotations_of.values() for annotation in found]
    if annotations and not any(annotation.get("segmentation") for annotation in annotations):
        raise UserError(
            f"'{file.path}' has {len(annotations)} annotations and none has a mask ('segmentation'); boxes alone, as "
            "Objects365 is published, cannot be trained on: make masks from the boxes with a promptable segmenter, as "
            "MRES-32M's authors did, and add them as COCO run lengths"
        )
