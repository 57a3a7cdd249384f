"""What a segmentation means: its forms, the spellings of "no mask", pieces that cost themselves, and what is never drawn."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from made_coco import HEIGHT, WIDTH, decode, rectangle, rectangle_mask, run_lengths
from pycocotools import mask as coco

from mres.records import RecordError
from mres.sources.coco_masks import (
    annotation_mask,
    bounding_box,
    empty_mask,
    has_no_mask,
    is_drawn,
    is_held_out,
    piece_masks,
    share_inside,
)

BOX = rectangle(2, 3, 10, 4)
BOX_HW = rectangle_mask(2, 3, 10, 4)
PAIRS = [[2, 3], [12, 3], [12, 7], [2, 7]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [2 * 20 + 3, *[4, 16] * 9, 4, 800 - 43 - 184]}


def drawn(segmentation: Any, notes: "Counter[str] | None" = None) -> np.ndarray | None:
    mask = annotation_mask(segmentation, HEIGHT, WIDTH, "here", Counter() if notes is None else notes)
    return None if mask is None else decode(mask)


@pytest.mark.parametrize(
    "spelling", [None, math.nan, "", "  ", {}, [], [[]], [[], []], [None], [""], [{}], {"counts": [], "size": [1, 1]}]
)
def test_the_spellings_of_no_mask_are_one(spelling: Any) -> None:
    assert has_no_mask(spelling)
    assert not is_drawn(spelling)
    assert drawn(spelling) is None


@pytest.mark.parametrize(
    "form",
    [
        [BOX],
        BOX,
        [*BOX, *BOX[:2]],
        PAIRS,
        [PAIRS],
        [[float(value) for value in BOX]],
        RUNS,
        {"size": [20.0, 40.0], "counts": [float(run) for run in RUNS["counts"]]},
        run_lengths(2, 3, 10, 4),
        [run_lengths(2, 3, 10, 4)],
        [run_lengths(2, 3, 5, 4), rectangle(7, 3, 5, 4)],
        [[], BOX],
    ],
    ids=lambda form: str(form)[:40],
)
def test_every_form_is_the_same_mask(form: Any) -> None:
    assert is_drawn(form)
    assert (drawn(form) == BOX_HW).all()


@pytest.mark.parametrize(
    ("piece", "note"),
    [
        ([1, 2, 3, 4], "polygons of fewer than three points, left out"),
        ([[1, 2], [3, 4]], "polygons of fewer than three points, left out"),
        ([1, 2, 3], "polygons of fewer than three points, left out"),
        ([*BOX, 5], "polygons of an odd number of coordinates, left out"),
        ([3, 3, 3, 3, 3, 3], "polygons that cover no pixel, left out"),
        (rectangle(2.1, 3.1, 0.01, 0.01), "polygons that cover no pixel, left out"),
        (rectangle(WIDTH, 3, 5, 5), "polygons outside of their image, left out"),
        (rectangle(-9, 3, 5, 5), "polygons outside of their image, left out"),
        (rectangle(1e9, 1e9, 5, 5), "polygons outside of their image, left out"),
    ],
)
def test_a_bad_piece_costs_itself(piece: list[float], note: str) -> None:
    notes = Counter[str]()
    assert (drawn([piece, BOX], notes) == BOX_HW).all()
    assert notes == {note: 1}
    assert drawn([piece]) is None


def test_a_piece_that_reaches_outside_is_clipped() -> None:
    notes = Counter[str]()
    assert (
        drawn([rectangle(-3, -2, 6, 6), rectangle(38, 18, 6.5, 6)], notes)
        == (rectangle_mask(0, 0, 3, 4) | rectangle_mask(38, 18, 2, 2))
    ).all()
    assert notes == {"masks clipped to their image": 1}


def test_good_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygons = [rng.uniform((-5, -5), (45, 25), (rng.integers(3, 9), 2)).ravel().tolist() for _ in range(3)]
        expected = coco.merge(coco.frPyObjects(polygons, HEIGHT, WIDTH))
        mask = annotation_mask(polygons, HEIGHT, WIDTH, "here", Counter())
        assert (coco.decode(expected) == (0 if mask is None else decode(mask))).all()


def zigzag(points: int, width: float, height: float) -> list[float]:
    return [value for i in range(points) for value in ((i % 2) * width, (i % 7) * height / 7)]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([zigzag(60_000, 640, 640)], "the outline of a polygon of 60000 points is .* pixels long, allowed"),
        ([zigzag(60_000, 5 * 640, 640)], "the outline of a polygon"),
        ([rectangle(2, 3, 1e8, 4)], "far outside"),
        ([rectangle(2, -2e9, 10, 4e9)], "far outside"),
        ([[1, 2, 3, 4, math.nan, 5]], "not a number"),
        ([[1, 2, 3, 4, math.inf, 5]], "not a number"),
        ([[1, 2, 3, 4, 10**400, 5]], "not a number"),
        ([[1, 2, 3, 4, "5", 6]], "not a number"),
        ([[1, 2, 3, 4, True, 6]], "not a number"),
        ([[[BOX]]], "not a number"),
        ([BOX, 7], "a polygon is int"),
        (7, "'segmentation' is int"),
        ({"size": [640, 640], "counts": [2**32, 640 * 640]}, "run lengths cover"),
        ({"size": [640, 640], "counts": [640 * 640 + 10**400, -(10**400)]}, "whole numbers"),
        ({"size": [640, 640], "counts": [1.5, 640 * 640 - 1.5]}, "whole numbers"),
        ({"size": [640, 640], "counts": "ooooooooO"}, "characters"),
        ({"size": ["x" * 10_000], "counts": [1]}, "the mask's size is"),
        ({"counts": [640 * 640]}, "the mask's size is None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_pycocotools_would_crash_on_is_named_before(segmentation: Any, message: str) -> None:
    with pytest.raises(RecordError, match=f"^here: .*{message}") as raised:
        piece_masks(segmentation, 640, 640, "here", Counter())
    assert len(str(raised.value)) < 1000


def test_masks_without_a_pixel() -> None:
    nothing = empty_mask(HEIGHT, WIDTH)
    assert nothing.is_empty
    assert bounding_box(nothing) == (0, 0, 0, 0)
    whole = annotation_mask([BOX], HEIGHT, WIDTH, "here", Counter())
    assert whole is not None
    assert share_inside(nothing, whole) == 0


def test_which_splits_are_held_out() -> None:
    """All whose name does not say that they are trained on."""
    names = ("val", "valid", "validation", "VAL2017", "test", "testA", "minival", "my_val", "carparts-test", "dev")
    names += ("eval", "evaluation", "holdout", "heldout", "unseen", "mine", "latest", "val_of_train", "evalTrain", "")
    assert [name for name in names if not is_held_out(name)] == []
    names = ("train", "Train", "TRAIN", "train2017", "training", "trainval", "train_val", "training-val", "trainaug")
    names += ("carparts-train", "myTrain", "minitrain2017", "pretrain", "refcoco-unc-train")
    assert [name for name in names if is_held_out(name)] == []
