"""Shapes that annotation tools draw, as COCO's polygons or as masks.

Shapes: H×W the image, h×w a picture that lies in it.
"""

import base64
import math
from collections import Counter
from typing import Any

import numpy as np

from mres.pixels.picture import open_picture
from mres.records import RecordError, Rle, decode_masks, encode_mask

_CORNERS = 72  # of the polygon that stands for an ellipse


def are_numbers(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in values)


def flat_points(points: Any, where: str) -> list[float]:
    """x, y, x, y … of [[x, y], …]. Raises: RecordError."""
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 and are_numbers(*p) for p in points):
        raise RecordError(f"{where}: its points are not a list of [x, y]")
    return [float(value) for point in points for value in point]


def box(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, turned: float = 0.0) -> list[float]:
    """A polygon around the centre (x, y), `turned` by radians."""
    found = []
    for corner in range(_CORNERS):
        angle = 2 * math.pi * corner / _CORNERS
        a, b = radius_x * math.cos(angle), radius_y * math.sin(angle)
        found += [x + a * math.cos(turned) - b * math.sin(turned), y + a * math.sin(turned) + b * math.cos(turned)]
    return found


def without(mask: Rle, holes: Rle) -> Rle:
    """The mask's pixels that are not in the holes."""
    mask_HW, holes_HW = decode_masks([mask, holes])
    return encode_mask(mask_HW & ~holes_HW.astype(bool))


def from_base64(value: Any, where: str) -> bytes:
    """Raises: RecordError."""
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (AttributeError, ValueError) as error:
        raise RecordError(f"{where}: not base64 ({error})") from None


def picture_mask(content: bytes, x: Any, y: Any, size: tuple[int, int], where: str, notes: "Counter[str]") -> Rle:
    """The mask in a small PNG whose upper left pixel lies at (x, y): what is not 0, or not transparent.

    Args:
        size: (height, width) of the image; what lies outside of it is cut off, and counted.
    """
    height, width = size
    if not are_numbers(x, y):
        raise RecordError(f"{where}: a bitmap at {x!r}, {y!r}")
    try:
        with open_picture(content) as picture:
            is_clear = picture.has_transparency_data
            bitmap_hw = np.asarray(picture.convert("RGBA").getchannel("A") if is_clear else picture.convert("L")) > 0
    except (OSError, ValueError, SyntaxError) as error:  # PictureError too
        raise RecordError(f"{where}: its bitmap cannot be decoded: it {error}") from None
    left, top = round(x), round(y)
    mask_HW = np.zeros((height, width), bool)
    inside_hw = bitmap_hw[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    mask_HW[max(0, top) : max(0, top) + inside_hw.shape[0], max(0, left) : max(0, left) + inside_hw.shape[1]] = (
        inside_hw
    )
    if mask_HW.sum() < bitmap_hw.sum():
        notes["masks clipped to their image"] += 1
    return encode_mask(mask_HW)
