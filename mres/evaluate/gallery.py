"""The report's gallery: which expressions are shown, and their pictures.

Shapes: H×W an image as drawn; h×w the original image.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mres.evaluate.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, drawing_size, overlay, resized_image, resized_mask
from mres.evaluate.results import ExpressionResult, ResultsError
from mres.records import GRANULARITIES, ImageRecord, RecordError, decode_masks
from mres.shards.reader import ShardSet
from mres.stream.image import open_image

# Where in the order of IoU the cases of a group lie: 0 is the worst, 1 the best.
CASE_GROUPS = {"good": 0.9, "typical": 0.5, "worst": 0.0}
CASES_A_GROUP = 8
_NEAR = 0.2  # share of the expressions among which a group finds its images
_SIDE = 384  # pixels of the longer side: sharp at the page's size on screens of high density too
_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Case:
    """One expression with its pictures as data URIs, and its masks' sizes in pixels of the original image."""

    result: ExpressionResult
    image: str
    truth: str
    prediction: str
    truth_pixels: int
    prediction_pixels: int


@dataclass(frozen=True, slots=True)
class CaseGroup:
    """The cases of one granularity and one place in the order of IoU."""

    granularity: str
    name: str
    cases: tuple[Case, ...]


def gallery(results: Sequence[ExpressionResult], shards: ShardSet) -> list[CaseGroup]:
    """Good, typical and worst cases of each granularity, drawn.

    Raises:
        ResultsError: an image of the results is not in `shards`, or a predicted mask is damaged.
    """
    chosen = {granularity: choose(results, granularity) for granularity in GRANULARITIES}
    wanted = {result.image_id for groups in chosen.values() for group in groups.values() for result in group}
    found = find_records(shards, wanted)
    return [
        CaseGroup(granularity, name, tuple(_draw(result, *found[result.image_id]) for result in group))
        for granularity, groups in chosen.items()
        for name, group in groups.items()
        if group
    ]


def choose(results: Sequence[ExpressionResult], granularity: str) -> dict[str, list[ExpressionResult]]:
    """For each group the expressions nearest to its place in the order of IoU, best first, each of another image.

    Groups share no expression, and no image as long as there are others near by. Ties are broken by a hash of the id,
    so that many expressions of IoU 0 do not all come from the first images; the choice depends on the results alone.
    """
    ordered = sorted((r for r in results if r.granularity == granularity and r.prediction is not None), key=_order)
    position = {result.expression_id: number for number, result in enumerate(ordered)}
    size = min(CASES_A_GROUP, math.ceil(len(ordered) / len(CASE_GROUPS)))
    near = max(size, math.ceil(_NEAR * len(ordered)))
    chosen: dict[str, list[ExpressionResult]] = {}
    for name in reversed(CASE_GROUPS):  # the worst first: of few expressions those matter most
        centre = CASE_GROUPS[name] * (len(ordered) - 1)
        nearest = sorted(ordered, key=lambda r: abs(position[r.expression_id] - centre))[:near]
        taken = [result for group in chosen.values() for result in group]
        chosen[name] = sorted(_of_different_images(nearest, taken, size), key=_order, reverse=True)
    return {name: chosen[name] for name in CASE_GROUPS}


def _order(result: ExpressionResult) -> tuple[float, int, str]:
    text = result.expression_id
    return result.iou, zlib.crc32(text.encode("utf-8", "replace")), text


def _of_different_images(
    nearest: Sequence[ExpressionResult], taken: Sequence[ExpressionResult], size: int
) -> list[ExpressionResult]:
    """The first `size` of `nearest`, one an image, preferring images that have not been `taken`."""
    images, expressions = {r.image_id for r in taken}, {r.expression_id for r in taken}
    first: dict[str, ExpressionResult] = {}
    for result in nearest:
        if result.expression_id not in expressions:
            first.setdefault(result.image_id, result)
    return sorted(first.values(), key=lambda result: result.image_id in images)[:size]


def find_records(shards: ShardSet, wanted: set[str]) -> Mapping[str, tuple[ImageRecord, str]]:
    """The wanted records with the places where they lie; reads on until all are there."""
    found: dict[str, tuple[ImageRecord, str]] = {}
    for index in range(len(shards)):
        if len(found) == len(wanted):
            break
        record = shards.read(index)
        if record.id in wanted:
            found[record.id] = record, shards.name(index)
    missing = sorted(wanted - found.keys())
    if missing:
        raise ResultsError(
            f"the results name the image {missing[0]!r}, which is not in the shard set ({len(missing)} such images); "
            "name the shard set that was evaluated (--data FOLDER)"
        )
    return found


def _draw(result: ExpressionResult, record: ImageRecord, where: str) -> Case:
    target = next((target for target in record.targets if target.id == result.target_id), None)
    if target is None:
        raise ResultsError(f"{where}: image {record.id!r} has no target {result.target_id!r}; evaluate again")
    size = drawing_size(record.width, record.height, _SIDE)
    image_HW3 = resized_image(pixels(record, where), size)
    masks_hw = (decode_masks([target.mask])[0].astype(bool), decoded_prediction(result, record))
    truth, prediction = (
        data_uri(overlay(image_HW3, resized_mask(mask_hw, size), colour))
        for mask_hw, colour in zip(masks_hw, (TRUTH_COLOUR, PREDICTION_COLOUR), strict=True)
    )
    return Case(result, data_uri(image_HW3), truth, prediction, *(int(mask_hw.sum()) for mask_hw in masks_hw))


def pixels(record: ImageRecord, where: str) -> np.ndarray:
    try:
        return np.asarray(open_image(record, where).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"{where}: record {record.id!r}: the image cannot be decoded ({error})") from None


def decoded_prediction(result: ExpressionResult, record: ImageRecord) -> np.ndarray:
    """The predicted mask (bool), checked to be of the record's size.

    Raises:
        ResultsError: damaged, or of another size.
    """
    mask = result.prediction
    assert mask is not None, "only results with a mask are chosen"
    try:
        if (mask.height, mask.width) != (record.height, record.width):
            raise ValueError(f"{mask.height} x {mask.width} pixels, not the image's {record.height} x {record.width}")
        return decode_masks([mask])[0].astype(bool)
    except ValueError as error:
        raise ResultsError(f"the results' prediction of {result.expression_id!r}: {error}; evaluate again") from None


def data_uri(image_HW3: np.ndarray) -> str:
    """The image as a WebP data URI."""
    with io.BytesIO() as buffer:
        Image.fromarray(image_HW3).save(buffer, "WEBP", quality=_QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
