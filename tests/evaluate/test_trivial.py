"""Trivial answers on records small enough to know the right figures by hand."""

import numpy as np
import pytest
from scenes import scenes

from mres.evaluate.iou import figures_of
from mres.evaluate.trivial import TRIVIAL_LABELS, trivial_answers
from mres.records import Expression, ImageRecord, Target, decode_masks, encode_mask, expression_id

SIDE = 8


def target(
    id_: str, rows: slice, columns: slice, *, parent: str | None = None, texts: int = 1, side: int = SIDE
) -> Target:
    """A rectangle; the category is the id without its digits."""
    mask_HW = np.zeros((side, side), bool)
    mask_HW[rows, columns] = True
    expressions = tuple(Expression(f"{id_} {i}", "category") for i in range(texts))
    granularity = "object" if parent is None else "part"
    return Target(id_, granularity, id_.rstrip("0123456789"), encode_mask(mask_HW), (0, 0, 1, 1), expressions, parent)


def record(*targets: Target, side: int = SIDE, id_: str = "im") -> ImageRecord:
    return ImageRecord(id_, b"", side, side, "val", "made", targets)


CAR = target("car1", slice(0, 4), slice(0, 4), texts=2)  # 16 pixels
RIVAL = target("car2", slice(4, 8), slice(0, 2))  # 8
TREE = target("tree", slice(4, 8), slice(4, 8))  # 16
WHEEL = target("wheel", slice(2, 4), slice(0, 2), parent="car1", texts=3)  # 4, within CAR
SCENE = record(CAR, RIVAL, TREE, WHEEL)


def ious(answers, id_: str) -> set[float]:
    return {result.iou for result in answers if result.target_id == id_}


def test_answers_known_by_hand():
    answers = trivial_answers([SCENE], [SCENE])
    assert ious(answers["everything"], "car1") == {16 / 64}
    assert ious(answers["all_objects"], "car1") == {16 / 40}
    assert ious(answers["all_objects"], "wheel") == {4 / 40}
    assert ious(answers["same_category"], "car1") == {16 / 24}
    assert ious(answers["same_category"], "tree") == {1.0}
    assert ious(answers["whole_object"], "wheel") == {4 / 16}


def test_every_expression_is_answered_once_in_the_order_of_the_set():
    held_out = list(scenes(6, seed=0, split="val"))
    answers = trivial_answers(scenes(6, seed=0, split="train"), iter(held_out))
    ids = [expression_id(r, t, i) for r in held_out for t, i in r.pairs()]
    parts = [expression_id(r, t, i) for r in held_out for t, i in r.pairs() if t.parent is not None]
    assert answers.keys() == TRIVIAL_LABELS.keys()
    for name, results in answers.items():
        assert [result.expression_id for result in results] == (parts if name == "whole_object" else ids)


def test_a_part_without_a_parent_has_no_whole_object():
    orphan = record(Target("w", "part", "wheel", WHEEL.mask, (0, 0, 1, 1), (Expression("wheel"),)))
    answers = trivial_answers([orphan], [orphan])
    assert answers["whole_object"] == []
    assert ious(answers["all_objects"], "w") == {0.0}  # there are none: an empty answer


def test_no_constant_mask_without_training_masks_of_the_granularity():
    answers = trivial_answers([record(TREE)], [SCENE])
    assert {result.granularity for result in answers["constant_mask"]} == {"object"}
    assert trivial_answers([], [SCENE])["constant_mask"] == []


def test_the_constant_mask_keeps_objects_and_parts_apart_and_fits_any_size():
    small = record(CAR, WHEEL)
    large = record(
        target("car1", slice(0, 32), slice(0, 32), side=64),
        target("wheel", slice(16, 32), slice(0, 16), parent="car1", side=64),
        side=64,
    )
    answers = trivial_answers([small], [large])["constant_mask"]
    assert min(result.iou for result in answers) > 0.95


def test_the_constant_mask_weighs_a_mask_by_its_expressions():
    """Half of the masks lie left, half right; the side with more expressions has to win."""
    left = record(target("left", slice(0, 8), slice(0, 4), texts=9))
    right = record(target("right", slice(0, 8), slice(4, 8), texts=2))
    held_out = record(target("left", slice(0, 8), slice(0, 4)))
    assert ious(trivial_answers([left, right], [held_out])["constant_mask"], "left") == {1.0}


@pytest.mark.parametrize("granularity", ["object", "part"])
def test_the_threshold_is_the_best_one_on_the_training_set(granularity):
    """No cut of the mean mask does better on the records that it was chosen on, found by trying all of them."""
    records = list(scenes(8, seed=5, split="train"))
    best = figures_of(trivial_answers(records, records)["constant_mask"])[granularity]["mIoU"]
    pairs = [(t, i) for r in records for t, i in r.pairs() if t.granularity == granularity]
    masks = [decoded(t) for t, _ in pairs]
    mean = np.mean(masks, axis=0)
    every_cut = [np.mean([iou_of(mean >= cut, mask) for mask in masks]) for cut in np.unique(mean)[1:]]
    assert best == pytest.approx(max(every_cut), rel=0.05)


def decoded(of: Target) -> np.ndarray:
    return decode_masks([of.mask])[0].astype(bool)


def iou_of(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()
