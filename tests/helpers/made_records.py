"""Small real records."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from mres.records import Expression, ImageRecord, Rle, Target

HEIGHT, WIDTH = 12, 20


def make_image(seed: int, width: int = WIDTH, height: int = HEIGHT, suffix: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, suffix)
        return buffer.getvalue()


def make_mask(seed: int) -> Rle:
    mask_HW = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.5
    return Rle(HEIGHT, WIDTH, coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))["counts"])


def make_record(index: int, *, suffix: str = "JPEG") -> ImageRecord:
    """A record whose number of expressions is 2 for the object and index % 3 + 1 for the part."""
    whole = Target(
        "o", "object", "car", make_mask(index), (0, 0, 5, 5), (Expression("the car"), Expression("ein Auto – ü"))
    )
    texts = tuple(Expression(f"wheel {i}", "category") for i in range(index % 3 + 1))
    part = Target("p", "part", "car:wheel", make_mask(index + 1000), (1, 2, 3, 4.5), texts, parent="o")
    return ImageRecord(f"im{index}", make_image(index, suffix=suffix), WIDTH, HEIGHT, "train", "made", (whole, part))
