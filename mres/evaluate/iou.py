"""IoU arithmetic: which number every figure is, and nothing that could differ between two programs that compute it.

Conventions (`PROTOCOL` says them in results.json):

- Masks are compared at the size of the original image. LAVT and ReLA resize the ground truth to 480 × 480, PolyFormer
  to its patch size; their figures differ a little from ours for the same masks.
- An empty prediction of an empty ground truth is IoU 1, as in LISA and EVF-SAM. CRIS, LAVT, PolyFormer and X-Decoder
  give 0. Data whose every mask has a pixel are not touched by the choice.
- P@X counts IoU ≥ X, as LAVT and X-Decoder do; CRIS and DETRIS count IoU > X.
- Every sentence counts once. CRIS validates on the first sentence of a mask only; others join all of a mask's into one.
- mIoU is the mean of the expressions' IoUs (called gIoU by some), oIoU = ΣI/ΣU (called cIoU). Object and part together
  is the mean over the expressions of both, not the mean of the two means.

All IoUs lie in 0…1. Shapes: H×W an original image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import numpy as np

from mres.records import GRANULARITIES, Granularity

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
FIGURES = ("mIoU", "oIoU", *(f"P@{at}" for at in PRECISIONS))
BOTH = "object_part"
GROUPS = (*GRANULARITIES, BOTH)
PROTOCOL = {
    "resolution": "original",
    "precision": "P@X is the share of the expressions with IoU >= X",
    "empty_union": "IoU 1 where prediction and ground truth are both empty",
    "sentences": "every sentence counts once",
    "mIoU": "mean of the expressions' IoUs; object_part is the mean over the expressions of both",
    "oIoU": "sum of intersections / sum of unions",
}

Figures = dict[str, float | int | None]


class Measured(Protocol):
    """What the arithmetic needs of an expression's result."""

    @property
    def granularity(self) -> Granularity: ...
    @property
    def kind(self) -> str: ...
    @property
    def intersection(self) -> int: ...
    @property
    def union(self) -> int: ...


def intersection_union(prediction_HW: np.ndarray, truth_HW: np.ndarray) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two boolean masks of one size."""
    assert prediction_HW.dtype == truth_HW.dtype == np.bool_, (prediction_HW.dtype, truth_HW.dtype)
    assert prediction_HW.shape == truth_HW.shape, (prediction_HW.shape, truth_HW.shape)
    intersection = int(np.count_nonzero(prediction_HW & truth_HW))
    return intersection, int(np.count_nonzero(prediction_HW)) + int(np.count_nonzero(truth_HW)) - intersection


def iou(intersection: int, union: int) -> float:
    """I/U correctly rounded, 1 where the union is empty."""
    return intersection / union if union else 1.0


def figures_of(results: Iterable[Measured]) -> dict[str, Figures]:
    """{"object" | "part" | "object_part": {"mIoU", "oIoU", "P@0.5" … "P@0.9", "num"}}; of nothing null, never NaN."""
    results = list(results)
    return {group: _figures([r for r in results if group in (r.granularity, BOTH)]) for group in GROUPS}


def all_figures_of(results: Iterable[Measured]) -> dict[str, Any]:
    """`figures_of` and, as "by_kind", {"object" | "part": {kind: {"mIoU", "num"}}}, the kinds in alphabetical order."""
    results = list(results)
    by_kind: dict[str, dict[str, Figures]] = {granularity: {} for granularity in GRANULARITIES}
    of_kind = attrgetter("granularity", "kind")
    for (granularity, kind), group in groupby(sorted(results, key=of_kind), of_kind):
        figures = _figures(list(group))
        by_kind[granularity][kind] = {"mIoU": figures["mIoU"], "num": figures["num"]}
    return {**figures_of(results), "by_kind": by_kind}


def _figures(results: Sequence[Measured]) -> Figures:
    assert all(0 <= r.intersection <= r.union for r in results)
    if not results:
        return {**dict.fromkeys(FIGURES), "num": 0}
    ious = [iou(r.intersection, r.union) for r in results]
    return {
        "mIoU": math.fsum(ious) / len(ious),  # exactly rounded, so that it does not depend on the order
        "oIoU": iou(sum(r.intersection for r in results), sum(r.union for r in results)),
        **{f"P@{at}": sum(value >= at for value in ious) / len(ious) for at in PRECISIONS},
        "num": len(ious),
    }
