from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.evaluate.gallery import CASES_A_GROUP, choose, gallery
from mres.evaluate.results import ExpressionResult, ResultsError, read_results
from mres.records import Rle

MASK = Rle(1, 1, b"01")
RESULT = ExpressionResult("", "", "o", "object", "car", "", "car", 0, 100, MASK)
RESULTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 100)), max_size=120).map(
    lambda drawn: [
        replace(RESULT, expression_id=f"{image}/{i}", image_id=f"im{image}", intersection=points)
        for i, (image, points) in enumerate(drawn)
    ]
)


@given(RESULTS, st.randoms())
def test_the_choice_is_fair_and_depends_on_the_results_alone(results, random):
    chosen = choose(results, "object")
    assert chosen == choose(random.sample(results, len(results)), "object")
    every = [result.expression_id for group in chosen.values() for result in group]
    assert len(set(every)) == len(every)
    for group in chosen.values():
        assert len(group) <= CASES_A_GROUP
        assert len({result.image_id for result in group}) == len(group)
        assert [r.iou for r in group] == sorted((r.iou for r in group), reverse=True)
    if results:
        assert chosen["worst"][-1].iou == min(result.iou for result in results)


def test_groups_lie_where_they_say():
    results = [replace(RESULT, expression_id=f"e{i}", image_id=f"im{i}", intersection=i % 101) for i in range(1010)]
    chosen = choose(results, "object")
    assert {name: len(group) for name, group in chosen.items()} == dict.fromkeys(chosen, CASES_A_GROUP)
    assert all(abs(r.iou - 0.9) < 0.02 for r in chosen["good"])
    assert all(abs(r.iou - 0.5) < 0.02 for r in chosen["typical"])
    assert all(r.iou == 0 for r in chosen["worst"])
    assert choose(results, "part") == {"good": [], "typical": [], "worst": []}


def test_results_without_masks_are_not_chosen():
    assert choose([replace(RESULT, prediction=None)], "object")["worst"] == []


def test_the_pictures_are_of_the_masks(made_run):
    run_dir, shards = made_run
    _, results = read_results(run_dir)
    for group in gallery(results, shards):
        for case in group.cases:
            both = case.truth_pixels + case.prediction_pixels
            assert both == case.result.intersection + case.result.union
            assert len({case.image, case.truth, case.prediction}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "elsewhere"}, "'elsewhere', which is not in the shard set"),
        ({"target_id": "nothing"}, "has no target 'nothing'"),
        ({"prediction": MASK}, "not the image's 128 x 128"),
        ({"prediction": Rle(128, 128, b"1")}, "not 128 x 128"),
        ({"prediction": Rle(128, 128, b"~~")}, "outside the RLE alphabet"),
    ],
)
def test_results_that_do_not_fit_the_data_are_named(made_run, change, message):
    run_dir, shards = made_run
    _, (first, *_) = read_results(run_dir)
    with pytest.raises(ResultsError, match=message):
        gallery([replace(first, **change)], shards)
