"""How often each set comes, and how its passes are cut into epochs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_order import SEEDS, sets

from mres.stream.epoch import (
    SetShape,
    draws_of_epoch,
    narrow,
    passes_between,
    runs_of_pass,
    shares_of_sets,
    shuffled,
)

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=8)


@given(SIZES)
def test_equal_weights_draw_every_image_once(sizes: list[int]) -> None:
    assert draws_of_epoch(sizes, shares_of_sets(sizes, [1.0] * len(sizes), 1)) == sizes
    assert draws_of_epoch(sizes, shares_of_sets(sizes, [0.3] * len(sizes), 1)) == sizes


@given(st.data())
def test_draws_are_within_one_of_their_share(data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(sizes), max_size=len(sizes)))
    shares = shares_of_sets(sizes, weights, data.draw(st.floats(1, 100)))
    assert sum(shares) == pytest.approx(1)
    draws = draws_of_epoch(sizes, shares)
    assert sum(draws) == sum(sizes)
    assert all(abs(m - sum(sizes) * share) <= 1 + 1e-6 for m, share in zip(draws, shares, strict=True))


@pytest.mark.parametrize(
    ("sizes", "weights", "temperature", "shares"),
    [
        ([100, 300], [1, 1], 1, [0.25, 0.75]),
        ([100, 300], [3, 1], 1, [0.5, 0.5]),
        ([100, 400], [1, 1], 2, [1 / 3, 2 / 3]),
        ([1, 10**9], [1, 1], 1e9, [0.5, 0.5]),
        ([5], [1], 1, [1]),
        ([7, 7], [1e-300, 1e300], 1, [0, 1]),
    ],
)
def test_shares(sizes: list[int], weights: list[float], temperature: float, shares: list[float]) -> None:
    assert shares_of_sets(sizes, weights, temperature) == pytest.approx(shares)


def test_the_largest_remainders_get_what_rounding_leaves() -> None:
    assert draws_of_epoch([4, 3, 3], [0.34, 0.27, 0.39]) == [3, 3, 4]
    assert draws_of_epoch([1, 1], [1, 1]) == [1, 1]
    assert draws_of_epoch([1, 2], [1, 1]) == [2, 1], "of equal remainders the first"


@given(st.integers(0, 10**12), st.integers(1, 200), st.integers(1, 50))
def test_a_stretch_of_the_sequence_is_cut_into_passes(first: int, count: int, size: int) -> None:
    places = [p * size + i for p, a, b in passes_between(first, first + count, size) for i in range(a, b)]
    assert places == list(range(first, first + count))
    assert all(0 <= a < b <= size for _, a, b in passes_between(first, first + count, size))


@given(sets(), SEEDS, st.data())
def test_runs_are_what_lies_there(shape: SetShape, seed: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(1, shape.num_images))
    first = data.draw(st.integers(0, last - 1))
    order_K = shuffled(len(shape.block_starts), seed, "blocks")
    whole = [(block, i) for block in order_K for i in range(shape.block_sizes[block])]
    runs_3R = runs_of_pass(order_K, shape.block_sizes, first, last)
    assert [(block, skip + i) for block, skip, size in runs_3R.T for i in range(size)] == whole[first:last]
    assert (runs_3R[2] > 0).all()


@given(st.integers(0, 300), SEEDS)
def test_shuffled_is_a_permutation(count: int, seed: int) -> None:
    assert sorted(shuffled(count, seed).tolist()) == list(range(count))


@pytest.mark.parametrize(("bound", "size"), [(255, 1), (256, 2), (65_536, 4), (2**32, 8)])
def test_as_few_bytes_as_hold_the_numbers(bound: int, size: int) -> None:
    assert narrow(np.array([0, bound]), bound).dtype.itemsize == size
    assert narrow(np.array([0, bound]), bound).tolist() == [0, bound]


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 3, 2], [0, 5]])
def test_blocks_that_do_not_cover_a_set_are_refused(starts: list[int]) -> None:
    with pytest.raises(AssertionError):
        SetShape(5, np.array(starts, dtype=np.int64))
