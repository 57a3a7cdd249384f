"""What a segmentation means, for every source: polygons, run lengths, lists of them, and the spellings of "no mask".

pycocotools is C that trusts its input: bad run lengths make it read past their end, huge coordinates and long outlines
make it allocate without limit or crash. Whatever comes from a file is therefore checked here first.
"""

# Shapes: N points of a polygon; H, W = the image's height and width in pixels.

import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mres.errors import shown
from mres.records import RecordError, Rle
from mres.rle import decode_counts

LEFT_OUT_BARE = "annotations without a mask, left out"
LEFT_OUT_EMPTY = "masks that cover no pixel, left out"
KEPT_EMPTY = "masks that cover no pixel, kept as empty truth (held-out split)"

_CLIPPED = "clipped"  # polygons; masks are what the build counts
_FAR = 4.0  # polygons may leave the image by this many sides before they count as damaged
_MAX_OUTLINE = 1_500_000  # pixels; pycocotools takes 100 bytes for each


class MaskSizeError(RecordError):
    """A mask that is not as large as its image."""


class EmptyMaskError(ValueError):
    """A mask that covers no pixel."""


def has_no_mask(segmentation: Any) -> bool:
    """Whether a segmentation is one of the spellings of "there is none": null, NaN, "", {}, [], [[]], [[], []], no runs.

    A missing field is `None`.
    """
    return (
        segmentation is None or (isinstance(segmentation, float) and math.isnan(segmentation)) or _is_bare(segmentation)
    )


def _is_bare(value: Any, depth: int = 3) -> bool:
    if isinstance(value, dict):
        return not value or value.get("counts", 0) in (None, "", [])
    if isinstance(value, list):
        return depth > 0 and all(_is_bare(one, depth - 1) for one in value)
    return value is None or (isinstance(value, str) and not value.strip())


def is_drawn(segmentation: Any) -> bool:
    """Whether a segmentation may cover a pixel, as far as can be told without drawing it."""
    if has_no_mask(segmentation) or not isinstance(segmentation, list) or _has_triples(segmentation):
        return not has_no_mask(segmentation)
    return any(not isinstance(piece, list) or not _is_sliver(_flat(piece)) for piece in _pieces(segmentation))


def is_held_out(split: str) -> bool:
    """Whether a split is evaluated on: each whose name does not say that it is trained on. There, a mask without a pixel is kept.

    An empty truth belongs to the denominator of what is published; nothing can be learned from it. "train2017",
    "trainval", "train_val" and "mine-train" are trained on; "val_of_train", "evalTrain" and "mine" are not.
    """
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", split).lower()
    said = re.search("(?<![a-z])(?:mini|pre)?(train|e?val|test|dev|held|hold)", words)
    return said is None or said[1] != "train"


def annotation_mask(segmentation: Any, height: int, width: int, where: str, notes: "Counter[str]") -> Rle | None:
    """The union of a segmentation's pieces; None if there is none, or none that covers a pixel (the caller counts that).

    Args, raises: as `piece_masks`.
    """
    pieces = piece_masks(segmentation, height, width, where, notes)
    return union(pieces) if pieces else None


def piece_masks(segmentation: Any, height: int, width: int, where: str, notes: "Counter[str]") -> list[Rle]:
    """The masks of a segmentation's pieces, without those that cover no pixel.

    As REFER's and ReLA's code does, polygons of fewer than three points, of an odd number of coordinates, without an
    area or outside of the image are left out, and others clipped to the image.

    Args:
        segmentation: a polygon or a list of polygons, each x, y, x, y … or [x, y], [x, y] …; run lengths
            {"size", "counts"} with counts as a list or a string, or a list of such; or no mask.
        height, width: of the image, in pixels.
        where: file and annotation, for messages.
        notes: where pieces are counted that are left out or clipped.

    Raises:
        RecordError: what is damaged: text or NaN for a coordinate, far outside, run lengths that do not fit.
    """
    if has_no_mask(segmentation):
        return []
    seen = Counter[str]()
    try:
        found = [_piece_mask(piece, height, width, seen) for piece in _pieces(segmentation)]
    except MaskSizeError as error:
        raise MaskSizeError(f"{where}: {error}") from None
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None
    if seen.pop(_CLIPPED, 0):
        seen["masks clipped to their image"] = 1
    notes.update(seen)
    return [mask for mask in found if mask is not None]


def empty_mask(height: int, width: int) -> Rle:
    """A mask without a pixel."""
    return _encoded([height * width], height, width)


def union(masks: Sequence[Rle]) -> Rle:
    """The union of masks of one size."""
    from pycocotools import mask as coco

    if len(masks) == 1:
        return masks[0]
    merged = coco.merge([_coco(mask) for mask in masks])
    return Rle(masks[0].height, masks[0].width, merged["counts"])


def share_inside(part: Rle, whole: Rle) -> float:
    """The share of the part's pixels that the whole has too, 0 to 1; of a part without a pixel, 0."""
    from pycocotools import mask as coco

    share = float(coco.iou([_coco(part)], [_coco(whole)], [1])[0, 0])  # "crowd": the intersection by the first's area
    return 0.0 if math.isnan(share) else share


def bounding_box(mask: Rle) -> tuple[float, float, float, float]:
    """(x, y, width, height) of a mask, in pixels; zeros where it has no pixel."""
    from pycocotools import mask as coco

    x, y, width, height = (float(value) for value in coco.toBbox(_coco(mask)))
    return (x, y, width, height)


def _coco(mask: Rle) -> dict[str, Any]:
    return {"size": [mask.height, mask.width], "counts": mask.counts}


def _pieces(segmentation: Any) -> list[Any]:
    if isinstance(segmentation, dict):
        return [segmentation]
    if not isinstance(segmentation, list):
        raise ValueError(f"'segmentation' is {type(segmentation).__name__}, expected polygons or run lengths")
    if _has_triples(segmentation):
        raise ValueError("its points have three values each, expected x, y, x, y … or [x, y], [x, y] …")
    is_one = all(map(_is_number, segmentation)) or (len(segmentation) > 2 and all(map(_is_pair, segmentation)))
    return [segmentation] if is_one else segmentation


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _has_triples(pieces: list[Any]) -> bool:
    """Whether what should be polygons are points [x, y, visibility] of one."""
    return len(pieces) > 2 and all(isinstance(p, list) and len(p) == 3 and all(map(_is_number, p)) for p in pieces)


def _flat(polygon: list[Any]) -> list[Any]:
    return [value for pair in polygon for value in pair] if all(map(_is_pair, polygon)) else polygon


def _is_sliver(flat: list[Any]) -> bool:
    """Whether coordinates are those of fewer than three points."""
    return len(flat) < 6 and all(map(_is_number, flat))


def _piece_mask(piece: Any, height: int, width: int, seen: "Counter[str]") -> Rle | None:
    """The mask of a polygon or of run lengths; None if it covers no pixel. Raises: ValueError."""
    if _is_bare(piece):
        return None
    if isinstance(piece, dict):
        runs = _run_lengths(piece, height, width)
        return _encoded(runs, height, width) if any(runs[1::2]) else None
    if not isinstance(piece, list):
        raise ValueError(f"a polygon is {type(piece).__name__}, expected a list of coordinates x, y, x, y …")
    flat = _flat(piece)
    if not all(map(_is_number, flat)):
        raise ValueError("a polygon has a coordinate that is not a number")
    if _is_sliver(flat) or len(flat) % 2:
        few = "fewer than three points" if len(flat) < 6 else "an odd number of coordinates"
        seen[f"polygons of {few}, left out"] += 1
        return None
    return _polygon_mask(_points(flat), height, width, seen)


def _points(flat: list[Any]) -> np.ndarray:
    """A polygon's points, xy_N2. Raises: ValueError: one is not finite."""
    with suppress(OverflowError):  # whole numbers of hundreds of digits
        xy_N2 = np.array(flat, np.float64).reshape(-1, 2)
        if np.isfinite(xy_N2).all():
            return xy_N2
    raise ValueError("a polygon has a coordinate that is not a number")


def _polygon_mask(xy_N2: np.ndarray, height: int, width: int, seen: "Counter[str]") -> Rle | None:
    """A polygon as pycocotools draws it; None, and counted, if that is no pixel. Raises: ValueError: it cannot be drawn."""
    from pycocotools import mask as coco

    sides, low, high = np.array([width, height]), xy_N2.min(0), xy_N2.max(0)
    if (high <= 0).any() or (low >= sides).any():
        seen["polygons outside of their image, left out"] += 1
        return None
    if (low < -_FAR * sides).any() or (high > (1 + _FAR) * sides).any():
        raise ValueError(f"a polygon reaches far outside of the image of {width}x{height} pixels")
    outline = np.abs(np.roll(xy_N2, 1, 0) - xy_N2).max(1).sum() + len(xy_N2)
    if outline > _MAX_OUTLINE:
        raise ValueError(
            f"the outline of a polygon of {len(xy_N2)} points is {outline:.0f} pixels long, allowed: {_MAX_OUTLINE}; such a "
            "mask can be given as run lengths"
        )
    (encoded,) = coco.frPyObjects([xy_N2.ravel().tolist()], height, width)
    if not coco.area(encoded):
        seen["polygons that cover no pixel, left out"] += 1
        return None
    if (low < 0).any() or (high > sides).any():
        seen[_CLIPPED] += 1
    return Rle(height, width, encoded["counts"])


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """Run lengths that cover the image. Raises: ValueError."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise MaskSizeError(f"the mask's size is {shown(segmentation.get('size'))}, the image's is [{height}, {width}]")
    if isinstance(counts, str):
        runs = decode_counts(counts.encode("ascii", "replace")).tolist()
    elif isinstance(counts, list) and all(_is_number(run) and run >= 0 and run == run // 1 for run in counts):
        runs = [int(run) for run in counts]
    else:
        raise ValueError("'counts' is neither a compressed string nor a list of whole numbers")
    if sum(runs) != height * width:
        raise ValueError(f"the run lengths cover {sum(runs)} pixels, the image has {height * width}")
    return runs


def _encoded(runs: list[int], height: int, width: int) -> Rle:
    """Run lengths that cover the image as COCO's compressed string."""
    from pycocotools import mask as coco

    encoded = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return Rle(height, width, encoded["counts"])
