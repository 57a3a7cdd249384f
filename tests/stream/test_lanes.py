"""An epoch is cut into lanes of equal length, each shuffled window by window."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.stream.lanes import Lanes

LANES = st.builds(Lanes, st.integers(1, 300), st.integers(1, 24), st.integers(1, 40))


@given(LANES)
def test_lanes_lie_one_behind_the_other_and_are_equally_long(lanes: Lanes) -> None:
    spans = [lanes.span(lane) for lane in range(lanes.images_per_batch)]
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == lanes.num_images
    lengths = [end - begin for begin, end in spans]
    assert max(lengths) == lanes.steps
    assert min(lengths) >= lanes.steps - 1
    assert lengths == sorted(lengths, reverse=True), "the empty places are the last ones of the last batch"


@given(LANES, st.data())
def test_windows_cover_a_lane(lanes: Lanes, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, lanes.images_per_batch - 1))
    begin, end = lanes.span(lane)
    windows = list(lanes.windows(lane, 0))
    assert [place for _, first, last in windows for place in range(first, last)] == list(range(begin, end))
    assert len({number for number, _, _ in windows}) == len(windows)
    assert all(last - first == lanes.window for _, first, last in windows[1:-1])
    assert all(lanes.window_of(lane, p - begin) == number for number, a, b in windows for p in range(a, b))
    if begin < end:
        first = data.draw(st.integers(0, end - begin - 1))
        assert list(lanes.windows(lane, first)) == [w for w in windows if w[2] > begin + first]


@pytest.mark.parametrize(("images_per_batch", "window"), [(8, 64), (64, 64), (100, 32)])
def test_lanes_do_not_all_go_on_to_new_windows_at_once(images_per_batch: int, window: int) -> None:
    lanes = Lanes(20 * window * images_per_batch, images_per_batch, window)
    steps = Counter(
        first - lanes.span(lane)[0]
        for lane in range(images_per_batch)
        for _, first, _ in list(lanes.windows(lane, 0))[1:]
    )
    assert max(steps.values()) <= -(-images_per_batch // window)
