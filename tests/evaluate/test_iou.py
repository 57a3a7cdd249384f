import json
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mres.evaluate.iou import GROUPS, PRECISIONS, all_figures_of, figures_of, intersection_union, iou
from mres.records import Granularity

SHAPE = (5, 7)
MASKS = arrays(np.bool_, SHAPE)
COUNTS = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)
EXPRESSIONS = st.lists(st.tuples(st.sampled_from(["object", "part"]), st.sampled_from(["", "colour", "size"]), COUNTS))


class Measured(NamedTuple):
    granularity: Granularity
    kind: str
    intersection: int
    union: int


def measured(expressions) -> list[Measured]:
    return [Measured(granularity, kind, *counts) for granularity, kind, counts in expressions]


@given(MASKS, MASKS)
def test_counts_are_those_of_sets(prediction_HW, truth_HW):
    prediction, truth = (set(zip(*np.nonzero(mask), strict=True)) for mask in (prediction_HW, truth_HW))
    assert intersection_union(prediction_HW, truth_HW) == (len(prediction & truth), len(prediction | truth))


def test_two_empty_masks_agree():
    empty_HW = np.zeros(SHAPE, bool)
    assert iou(*intersection_union(empty_HW, empty_HW)) == 1.0


def test_an_empty_answer_to_something_is_worth_nothing():
    truth_HW = np.zeros(SHAPE, bool)
    truth_HW[0, 0] = True
    assert iou(*intersection_union(np.zeros(SHAPE, bool), truth_HW)) == 0.0
    assert iou(*intersection_union(truth_HW, np.zeros(SHAPE, bool))) == 0.0


def test_masks_of_other_sizes_or_types_are_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        intersection_union(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
    with pytest.raises(AssertionError):
        intersection_union(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, bool))


@given(EXPRESSIONS)
def test_figures_against_their_definitions(expressions):
    figures = figures_of(measured(expressions))
    for name in GROUPS:
        counts = [pair for granularity, _, pair in expressions if name in (granularity, "object_part")]
        found = figures[name]
        assert found["num"] == len(counts)
        if not counts:
            assert {value for key, value in found.items() if key != "num"} == {None}
            continue
        ious = [i / u if u else 1.0 for i, u in counts]
        total_intersection, total_union = map(sum, zip(*counts, strict=True))
        assert found["mIoU"] == pytest.approx(np.mean(ious), abs=1e-12)
        assert found["oIoU"] == (total_intersection / total_union if total_union else 1.0)
        for at in PRECISIONS:
            assert found[f"P@{at}"] == sum(value >= at for value in ious) / len(ious)


@given(EXPRESSIONS.filter(bool))
def test_both_together_is_the_average_weighted_by_counts(expressions):
    figures = figures_of(measured(expressions))
    weighted = sum(figures[g]["num"] * (figures[g]["mIoU"] or 0.0) for g in ("object", "part"))
    assert figures["object_part"]["mIoU"] == pytest.approx(weighted / len(expressions), abs=1e-12)


@given(EXPRESSIONS, st.randoms())
def test_order_of_the_expressions_does_not_matter_to_the_last_bit(expressions, random):
    shuffled = list(expressions)
    random.shuffle(shuffled)
    assert all_figures_of(measured(expressions)) == all_figures_of(measured(shuffled))


@given(EXPRESSIONS)
def test_kinds_add_up_to_their_granularity(expressions):
    found = all_figures_of(measured(expressions))
    for granularity, kinds in found["by_kind"].items():
        whole = found[granularity]
        assert sum(figures["num"] for figures in kinds.values()) == whole["num"]
        if whole["num"]:
            mean = math.fsum(figures["num"] * figures["mIoU"] for figures in kinds.values()) / whole["num"]
            assert mean == pytest.approx(whole["mIoU"], abs=1e-12)


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_precision_counts_an_iou_of_exactly_the_threshold(tenths):
    results = [Measured("part", "", tenths * factor, 10 * factor) for factor in (1, 3, 7, 10_007, 123_456_789)]
    results.append(Measured("part", "", tenths * 10_007 - 1, 10 * 10_007))
    assert figures_of(results)["part"][f"P@{tenths / 10}"] == 5 / 6


def test_a_table_of_nothing_is_strict_json():
    text = json.dumps(figures_of([]), allow_nan=False)
    assert json.loads(text)["object_part"]["mIoU"] is None
