"""COCO-style files with their images, as small as tests need them: images of 40x20 pixels, masks that are rectangles."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from mres.records import ImageRecord, RecordError, Rle, Target
from mres.sources.registry import SOURCES
from mres.sources.source import RecordSource

HEIGHT, WIDTH = 20, 40


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rectangle_mask(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[y : y + height, x : x + width] = 1
    return mask_HW


def run_lengths(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A rectangle as COCO's compressed run lengths, as JSON has them."""
    encoded = coco.encode(np.asfortranarray(rectangle_mask(x, y, width, height)))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def decode(mask: Rle) -> np.ndarray:
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts})


def annotation(id_: int, category: int, segmentation: Any, image: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "image_id": image, "category_id": category, "segmentation": segmentation, **fields}


def write_coco(
    folder: Path,
    categories: list[str],
    annotations: list[dict[str, Any]],
    file_names: tuple[str, ...] = ("000000000001.jpg",),
    stored: tuple[str, ...] | None = None,
    **fields: Any,
) -> list[str]:
    """`annotations.json` and `images/`; the command line's options for them.

    Categories are numbered from 1, as are the images; `stored` are the paths of the images where these are not
    `file_names`.
    """
    for number, name in enumerate(stored or file_names):
        place = folder / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(place, "JPEG")
    images = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        for number, name in enumerate(file_names, start=1)
    ]
    named = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
    value = {"images": images, "categories": named, "annotations": annotations, **fields}
    (folder / "annotations.json").write_text(json.dumps(value))
    return ["--annotations", str(folder / "annotations.json"), "--images", str(folder / "images")]


def open_weights(name: str, *options: str) -> RecordSource:
    """A source as the command line opens it."""
    parser = argparse.ArgumentParser()
    SOURCES[name].add_arguments(parser)
    return SOURCES[name].open(parser.parse_args(options))


def only_record(source: RecordSource) -> ImageRecord:
    (item,) = source
    if isinstance(item, RecordError):
        raise item
    return item


def by_id(record: ImageRecord) -> dict[str, Target]:
    return {target.id: target for target in record.targets}


def texts(target: Target) -> list[str]:
    return [expression.text for expression in target.expressions]


def area_of(target: Target) -> int:
    return int(decode(target.mask).sum())
