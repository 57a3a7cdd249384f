"""COCO segmentations (polygons, run lengths, compressed run lengths) to masks, checked before pycocotools sees them.

pycocotools is C that trusts its input: bad run lengths make it read past their end, huge coordinates make it allocate
without limit. Whatever comes from a file is therefore checked here first.
"""

import math
from collections.abc import Sequence
from typing import Any

from mres.records import Rle
from mres.rle import decode_counts

_FAR = 4.0  # polygons may leave the image by this many sides before they count as damaged


class EmptyMaskError(ValueError):
    """A segmentation that covers no pixel."""


def segmentation_rle(segmentation: Any, height: int, width: int) -> tuple[Rle, bool]:
    """The mask of one annotation, and whether it had to be clipped to the image.

    Args:
        segmentation: COCO's field: a list of polygons, or {"size", "counts"} with counts as a list or a string.
        height, width: of the image, in pixels.

    Raises:
        ValueError: saying what is wrong with it (`EmptyMaskError` if it is merely empty); the caller names the place.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        clipped = [_check_polygon(polygon, height, width) for polygon in segmentation]
        if not clipped:
            raise ValueError("'segmentation' is an empty list")
        encoded = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict):
        clipped = [False]
        encoded = _run_lengths(segmentation, height, width)
    else:
        raise ValueError(f"'segmentation' is {type(segmentation).__name__}, expected polygons or run lengths")
    if not coco.area(encoded):
        raise EmptyMaskError("the mask covers no pixel")
    return Rle(height, width, encoded["counts"]), any(clipped)


def union(masks: Sequence[Rle]) -> Rle:
    """The union of masks of one size."""
    from pycocotools import mask as coco

    if len(masks) == 1:
        return masks[0]
    merged = coco.merge([_coco(mask) for mask in masks])
    return Rle(masks[0].height, masks[0].width, merged["counts"])


def share_inside(part: Rle, whole: Rle) -> float:
    """The share of the part's pixels that the whole has too, 0 to 1."""
    from pycocotools import mask as coco

    return float(coco.iou([_coco(part)], [_coco(whole)], [1])[0, 0])  # "crowd": the intersection by the first's area


def bounding_box(mask: Rle) -> tuple[float, float, float, float]:
    """(x, y, width, height) of a mask, in pixels."""
    from pycocotools import mask as coco

    x, y, width, height = (float(value) for value in coco.toBbox(_coco(mask)))
    return (x, y, width, height)


def _coco(mask: Rle) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.counts}


def _check_polygon(polygon: Any, height: int, width: int) -> bool:
    """Raises ValueError for what is no polygon of this image; returns whether it reaches outside."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon needs at least three points, as a flat list x, y, x, y …")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in polygon):
        raise ValueError("a polygon has a coordinate that is not a number")
    xs, ys = polygon[0::2], polygon[1::2]
    if max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height:
        raise ValueError(f"a polygon lies wholly outside of the image of {width}x{height} pixels")
    for values, side in ((xs, width), (ys, height)):
        if min(values) < -_FAR * side or max(values) > (1 + _FAR) * side:
            raise ValueError(f"a polygon reaches far outside of the image of {width}x{height} pixels")
    return min(xs) < 0 or max(xs) > width or min(ys) < 0 or max(ys) > height


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    from pycocotools import mask as coco

    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"the mask's size is {segmentation.get('size')}, the image's is [{height}, {width}]")
    if isinstance(counts, str):
        compressed = counts.encode("ascii", "replace")
        runs = decode_counts(compressed).tolist()
    elif isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts):
        runs = counts
    else:
        raise ValueError("'counts' is neither a compressed string nor a list of whole numbers")
    if sum(runs) != height * width:
        raise ValueError(f"the run lengths cover {sum(runs)} pixels, the image has {height * width}")
    encoded: dict[str, Any] = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return encoded
