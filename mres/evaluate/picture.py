"""A picture for a README or a talk: a few typical images, each with objects and parts that were asked for.

Shapes: H×W an image as drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.evaluate.drawn_file import write_drawn
from mres.evaluate.gallery import decoded_prediction, find_records, pixels
from mres.evaluate.overlay import PREDICTION_COLOUR, drawing_size, grid, overlay, panel, resized_image, resized_mask
from mres.evaluate.results import ExpressionResult
from mres.records import GRANULARITIES
from mres.shards.reader import ShardSet

_IMAGES = 3
_EACH = 2  # expressions of each granularity an image
_SIDE = 288


def draw_picture(results: Sequence[ExpressionResult], shards: ShardSet, path: Path) -> None:
    """Writes a contact sheet (PNG): one row an image, two objects and two parts, with text and IoU.

    The images are those whose mean IoU is nearest to the median over images, so the picture is typical, not the best.

    Raises:
        UserError: no predicted masks in the results, or no image with two expressions of each granularity.
    """
    rows = _typical(results)
    if not rows:
        raise UserError(
            "no picture: no image has predicted masks of two objects and two parts; evaluate with evaluate.save_masks=true"
        )
    found = find_records(shards, {row[0].image_id for row in rows})
    panels = []
    for row in rows:
        record, where = found[row[0].image_id]
        size = drawing_size(record.width, record.height, _SIDE)
        image_HW3 = resized_image(pixels(record, where), size)
        for result in row:
            mask_HW: np.ndarray = resized_mask(decoded_prediction(result, record), size)
            panels.append(panel(overlay(image_HW3, mask_HW, PREDICTION_COLOUR), f"{result.text}  ({result.iou:.2f})"))
    write_drawn({path: grid(panels, len(GRANULARITIES) * _EACH)})


def _typical(results: Sequence[ExpressionResult]) -> list[list[ExpressionResult]]:
    by_image: dict[str, list[ExpressionResult]] = defaultdict(list)
    for result in results:
        if result.prediction is not None:
            by_image[result.image_id].append(result)
    rows = {image: _row(own) for image, own in by_image.items()}
    mean = {image: float(np.mean([r.iou for r in by_image[image]])) for image, row in rows.items() if row}
    if not mean:
        return []
    median = float(np.median(list(mean.values())))
    nearest = sorted(mean, key=lambda image: (abs(mean[image] - median), image))
    return [rows[image] for image in nearest[:_IMAGES]]


def _row(results: Sequence[ExpressionResult]) -> list[ExpressionResult]:
    """Two objects and two parts of different targets, of different kinds where there are; empty where there are not."""
    row: list[ExpressionResult] = []
    for granularity in GRANULARITIES:
        own: list[ExpressionResult] = []
        for result in (r for r in results if r.granularity == granularity):
            if len(own) < _EACH and all(r.target_id != result.target_id and r.kind != result.kind for r in own):
                own.append(result)
        if len(own) < _EACH:
            return []
        row += own
    return row
