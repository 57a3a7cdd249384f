"""The order of a run is a pure function of (seed, epoch, number of images)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mres.errors import UserError
from mres.stream.order import Order, Slot, rng

SEEDS = st.integers(0, 2**31 - 1)
ORDERS = st.builds(Order, SEEDS, st.integers(1, 60), st.integers(1, 24))


def global_batches(order: Order, first: int, last: int, world_size: int = 1) -> list[list[Slot]]:
    """The ranks' shares of each step, one behind the other."""
    shares = [order.slots(first, last, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [[slot for share in step for slot in share] for step in zip(*shares, strict=True)]


@given(ORDERS, st.integers(0, 3))
def test_every_image_once_an_epoch_and_padding_only_at_its_end(order: Order, epoch: int) -> None:
    steps = order.steps_per_epoch
    batches = global_batches(order, epoch * steps, (epoch + 1) * steps)
    assert all(len(batch) == order.images_per_batch for batch in batches)
    slots = [slot for batch in batches for slot in batch]
    assert {slot.epoch for slot in slots} == {epoch}
    images = [slot.index for slot in slots]
    assert Counter(i for i in images if i is not None) == Counter(range(order.num_images))
    assert all(i is None for i in images[order.num_images :])


@given(ORDERS, st.data())
def test_the_global_batch_does_not_depend_on_the_world_size(order: Order, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from([w for w in range(1, 25) if order.images_per_batch % w == 0]))
    last = 2 * order.steps_per_epoch + 1
    assert global_batches(order, 0, last, world_size) == global_batches(order, 0, last)


@given(ORDERS, st.data())
def test_going_on_at_any_step_is_the_continuation(order: Order, data: st.DataObject) -> None:
    last = 3 * order.steps_per_epoch
    step = data.draw(st.integers(0, last))
    whole = global_batches(order, 0, last)
    assert global_batches(order, step, last) == whole[step:]
    seen = sum(slot.index is not None for batch in whole[:step] for slot in batch)
    assert order.images_before(step) == seen
    if step < last:
        assert {slot.epoch for slot in whole[step]} == {order.epoch_of(step)}


@given(SEEDS)
def test_epochs_and_seeds_are_shuffled_differently(seed: int) -> None:
    order = Order(seed, 50, 10)
    assert order.epoch_images(0).tolist() != order.epoch_images(1).tolist()
    assert order.epoch_images(0).tolist() != Order(seed + 1, 50, 10).epoch_images(0).tolist()
    assert order.epoch_images(0).tolist() == Order(seed, 50, 7).epoch_images(0).tolist()


def test_the_order_of_a_seed_stays_what_it_is() -> None:
    """A resumed run of an older version must find the same order."""
    assert Order(0, 8, 2).epoch_images(0).tolist() == [6, 3, 5, 0, 1, 2, 7, 4]
    assert Order(0, 8, 2).epoch_images(1).tolist() == [1, 5, 2, 3, 6, 7, 4, 0]


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.images_per_batch=6 cannot be split among 4 ranks; use a multiple of 4"):
        next(Order(0, 10, 6).slots(0, 1, rank=0, world_size=4))


@settings(max_examples=30)
@given(st.permutations(list(range(6))))
def test_random_numbers_depend_on_their_key_alone(calls: list[int]) -> None:
    keys = [(0, 0, "a", "augment"), (0, 0, "a", "expressions"), (0, 1, "a", "augment"), (1, 0, "a", "augment"),
            (0, 0, "b", "augment"), (0, 0, "a/augment", "")]  # fmt: skip
    expected = {i: rng(*keys[i]).random(3).tolist() for i in range(6)}
    assert {i: rng(*keys[i]).random(3).tolist() for i in calls} == expected
    assert len({tuple(v) for v in expected.values()}) == 6


def test_random_numbers_are_uniform() -> None:
    draws = np.array([rng(0, epoch, f"im{i}", "augment").random() for epoch in range(5) for i in range(400)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert np.histogram(draws, 10, (0, 1))[0].min() > 140
