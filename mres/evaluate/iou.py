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
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mres.records import GRANULARITIES, Granularity

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
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


@dataclass
class _Group:
    ious: list[float] = field(default_factory=list)
    intersection: int = 0
    union: int = 0

    def add(self, intersection: int, union: int) -> None:
        self.ious.append(iou(intersection, union))
        self.intersection += intersection
        self.union += union

    @property
    def mean(self) -> float | None:
        """Exactly rounded, so that it does not depend on the order of the expressions."""
        return math.fsum(self.ious) / len(self.ious) if self.ious else None

    def precision(self, at: float) -> float | None:
        return sum(value >= at for value in self.ious) / len(self.ious) if self.ious else None


class IouTable:
    """Adds up expressions and gives every figure; a group without expressions has null figures and num 0, never NaN."""

    def __init__(self) -> None:
        self._groups = {group: _Group() for group in GROUPS}
        self._kinds: dict[str, defaultdict[str, _Group]] = {name: defaultdict(_Group) for name in GRANULARITIES}

    def add(self, granularity: Granularity, kind: str, intersection: int, union: int) -> None:
        """One expression."""
        assert 0 <= intersection <= union, (intersection, union)
        for group in (self._groups[granularity], self._groups[BOTH], self._kinds[granularity][kind]):
            group.add(intersection, union)

    def figures(self) -> dict[str, Figures]:
        """{"object" | "part" | "object_part": {"mIoU", "oIoU", "P@0.5" … "P@0.9", "num"}}."""
        return {name: _figures(group) for name, group in self._groups.items()}

    def by_kind(self) -> dict[str, dict[str, Figures]]:
        """{"object" | "part": {kind: {"mIoU", "num"}}}, the kinds in alphabetical order."""
        return {
            granularity: {kind: {"mIoU": kinds[kind].mean, "num": len(kinds[kind].ious)} for kind in sorted(kinds)}
            for granularity, kinds in self._kinds.items()
        }


def _figures(group: _Group) -> Figures:
    overall = iou(group.intersection, group.union) if group.ious else None
    precisions = {f"P@{at}": group.precision(at) for at in PRECISIONS}
    return {"mIoU": group.mean, "oIoU": overall, **precisions, "num": len(group.ious)}


def table_of(results: Iterable[Measured]) -> IouTable:
    """The table of these results."""
    table = IouTable()
    for result in results:
        table.add(result.granularity, result.kind, result.intersection, result.union)
    return table


def figures_of(results: Iterable[Measured]) -> dict[str, Figures]:
    """mIoU, oIoU, P@X and num by granularity (`IouTable.figures`)."""
    return table_of(results).figures()


def all_figures_of(results: Iterable[Measured]) -> dict[str, Any]:
    """`figures_of` and, under "by_kind", the mIoU by kind of expression."""
    table = table_of(results)
    return {**table.figures(), "by_kind": table.by_kind()}
