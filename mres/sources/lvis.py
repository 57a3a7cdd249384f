"""LVIS v1 (1,203 object categories on COCO's images of 2017) to image records."""

import argparse
from collections import Counter
from pathlib import Path

from mres.errors import UserError
from mres.sources.coco_file import CocoFile, add_coco_arguments, image_source
from mres.sources.coco_masks import is_held_out
from mres.sources.object_parts import MaskReader, drop_unsure, nouns_of
from mres.sources.source import RecordSource


def lvis(annotations: Path, images: Path, split: str) -> RecordSource:
    """The image records of one file of LVIS, such as `lvis_v1_train.json`.

    Objects whose category the file marks as not exhaustively annotated in an image are left out there.

    Raises:
        UserError: not an LVIS file, no such folder, no annotated image.
    """
    file = CocoFile(annotations)
    if not any("not_exhaustive_category_ids" in entry for entry in file.images.values()):
        raise UserError(
            f"'{file.path}' is not an LVIS file: no image has 'not_exhaustive_category_ids'; files of COCO are read by the "
            "format instances"
        )
    nouns, notes = nouns_of(file), Counter[str]()
    drop_unsure(file, nouns, notes)
    targets_of = MaskReader(file, nouns, notes, is_held_out(split)).targets
    return image_source(file, images, split, "lvis", targets_of, {"format": "lvis"}, notes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_coco_arguments(parser, "the folder with COCO's train2017 and val2017")
