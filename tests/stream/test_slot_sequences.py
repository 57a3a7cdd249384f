"""An epoch is cut into one sequence a slot of the batch, all equally long, each shuffled window by window."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_order import made_set

from mres.stream.order import Order


def cut(num_images: int, images_per_batch: int, window: int) -> Order:
    return Order(0, [made_set(num_images)], images_per_batch, window=window)


ORDERS = st.builds(cut, st.integers(1, 300), st.integers(1, 24), st.integers(1, 40))


@given(ORDERS)
def test_sequences_lie_one_behind_the_other_and_are_equally_long(order: Order) -> None:
    spans = [order.span(slot) for slot in range(order.images_per_batch)]
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == order.num_images
    lengths = [end - begin for begin, end in spans]
    assert max(lengths) == order.steps_per_epoch
    assert min(lengths) >= order.steps_per_epoch - 1
    assert lengths == sorted(lengths, reverse=True), "the empty slots are the last ones of the last batch"


@given(ORDERS, st.data())
def test_windows_cover_a_sequence(order: Order, data: st.DataObject) -> None:
    slot = data.draw(st.integers(0, order.images_per_batch - 1))
    begin, end = order.span(slot)
    windows = list(order.windows(slot, 0))
    assert [position for _, first, last in windows for position in range(first, last)] == list(range(begin, end))
    assert len({number for number, _, _ in windows}) == len(windows)
    assert all(last - first == order.window for _, first, last in windows[1:-1])
    assert all(order.window_of(slot, p - begin) == number for number, a, b in windows for p in range(a, b))
    if begin < end:
        first = data.draw(st.integers(0, end - begin - 1))
        assert list(order.windows(slot, first)) == [w for w in windows if w[2] > begin + first]


@pytest.mark.parametrize(("images_per_batch", "window"), [(8, 64), (64, 64), (100, 32)])
def test_slots_do_not_all_go_on_to_new_windows_at_once(images_per_batch: int, window: int) -> None:
    order = cut(20 * window * images_per_batch, images_per_batch, window)
    steps = Counter(
        first - order.span(slot)[0]
        for slot in range(images_per_batch)
        for _, first, _ in list(order.windows(slot, 0))[1:]
    )
    assert max(steps.values()) <= -(-images_per_batch // window)
