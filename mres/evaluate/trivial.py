"""Answers that anyone could give who does not read the expression: what a model's figures have to be compared with.

All are made from ground truth alone. `same_category` is no fair competitor, it knows the right category: it is what a
model reaches that reads "the red car on the left" as "car".

Shapes: N targets, T thresholds, H×W an original image, G×G the grid of relative coordinates where masks are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

from mres.evaluate.iou import intersection_union
from mres.evaluate.results import ExpressionResult
from mres.records import GRANULARITIES, Granularity, ImageRecord, decode_masks
from mres.stream.transforms import resize_map

TRIVIAL_LABELS = {
    "everything": "everything",
    "constant_mask": "best constant mask",
    "all_objects": "all objects",
    "whole_object": "whole object for the part",
    "same_category": "all of its category",
}
_GRID = 64
_SHARES_T = np.linspace(0.02, 0.98, 49)  # thresholds, as shares of the mean mask's highest value
_CACHED_SIZES = 64
_MOST_TARGETS = 20_000  # from which the threshold is chosen: 4 kB each; the mean is over all


def trivial_answers(train: Iterable[ImageRecord], held_out: Iterable[ImageRecord]) -> dict[str, list[ExpressionResult]]:
    """Every trivial answer to every expression of `held_out`, in its order, by the names of `TRIVIAL_LABELS`.

    An answer that does not apply to an expression is left out: `whole_object` is for parts that name their parent, and
    `constant_mask` needs training masks of the granularity. Both iterables are read once.
    """
    constant = _ConstantMasks(train)
    answers: dict[str, list[ExpressionResult]] = {name: [] for name in TRIVIAL_LABELS}
    for record in held_out:
        masks_NHW = decode_masks([target.mask for target in record.targets]).astype(bool)
        for position, target in enumerate(record.targets):
            for name, mask_HW in _answers(record, position, masks_NHW, constant):
                areas = intersection_union(mask_HW, masks_NHW[position])
                answers[name] += [ExpressionResult.of(record, target, i, areas) for i in range(len(target.expressions))]
    return answers


def _answers(
    record: ImageRecord, position: int, masks_NHW: np.ndarray, constant: _ConstantMasks
) -> Iterator[tuple[str, np.ndarray]]:
    target, targets = record.targets[position], record.targets
    yield "everything", np.ones((record.height, record.width), bool)
    constant_HW = constant.mask(target.granularity, record.width, record.height)
    if constant_HW is not None:
        yield "constant_mask", constant_HW
    yield "all_objects", _union(masks_NHW, [other.granularity == "object" for other in targets])
    if target.granularity == "part" and target.parent is not None:
        yield "whole_object", _union(masks_NHW, [other.id == target.parent for other in targets])
    name = (target.granularity, target.category)
    yield "same_category", _union(masks_NHW, [(other.granularity, other.category) == name for other in targets])


def _union(masks_NHW: np.ndarray, chosen_N: list[bool]) -> np.ndarray:
    union_HW: np.ndarray = masks_NHW[np.array(chosen_N)].any(axis=0)
    return union_HW


class _ConstantMasks:
    """For each granularity the mean training mask, cut where that gives the best training mIoU."""

    def __init__(self, train: Iterable[ImageRecord]) -> None:
        means = {granularity: _MeanMask() for granularity in GRANULARITIES}
        for record in train:
            masks_NHW = decode_masks([target.mask for target in record.targets])
            for target, mask_HW in zip(record.targets, masks_NHW, strict=True):
                means[target.granularity].add(mask_HW, len(target.expressions))
        self._best = {name: (mean.mean(), mean.best_threshold()) for name, mean in means.items() if mean.weights}
        self._sized = lru_cache(maxsize=_CACHED_SIZES)(self._cut)

    def mask(self, granularity: Granularity, width: int, height: int) -> np.ndarray | None:
        """The answer for an image of this size; None where training showed no such target."""
        return self._sized(granularity, width, height) if granularity in self._best else None

    def _cut(self, granularity: Granularity, width: int, height: int) -> np.ndarray:
        mean_GG, threshold = self._best[granularity]
        cut_HW: np.ndarray = resize_map(mean_GG, width, height) >= threshold
        return cut_HW


class _MeanMask:
    """The mean of masks in relative coordinates, every mask weighted by its number of expressions."""

    def __init__(self) -> None:
        self._sum_GG = np.zeros((_GRID, _GRID))
        self._covered: list[np.ndarray] = []
        self.weights: list[int] = []

    def add(self, mask_HW: np.ndarray, num_expressions: int) -> None:
        """One mask, uint8 0/1."""
        image = Image.fromarray(mask_HW * np.uint8(255)).resize((_GRID, _GRID), Image.Resampling.BOX)
        covered_GG = np.asarray(image)
        self._sum_GG += num_expressions * (covered_GG / 255)
        self.weights.append(num_expressions)
        if len(self._covered) < _MOST_TARGETS:
            self._covered.append(covered_GG)

    def mean(self) -> np.ndarray:
        return (self._sum_GG / sum(self.weights)).astype(np.float32)

    def best_threshold(self) -> float:
        """Of the grid, by the mIoU over the masks seen; a cell counts by the share of it that a mask covers."""
        mean_GG = self.mean()
        thresholds_T = mean_GG.max() * _SHARES_T
        answers_TG = (mean_GG.ravel() >= thresholds_T[:, None]).astype(np.float32)
        total_T = np.zeros(len(thresholds_T))
        for start in range(0, len(self._covered), 1024):
            covered_NG = np.stack(self._covered[start : start + 1024]).reshape(-1, _GRID**2).astype(np.float32) / 255
            intersection_NT = covered_NG @ answers_TG.T
            union_NT = covered_NG.sum(1)[:, None] + answers_TG.sum(1) - intersection_NT
            weights_N = np.array(self.weights[start : start + len(covered_NG)])
            total_T += weights_N @ (intersection_NT / np.maximum(union_NT, 1e-6))
        best = np.flatnonzero(total_T >= total_T.max() - 1e-9)
        return float(thresholds_T[best[len(best) // 2]])  # of equals the one in the middle generalises best
