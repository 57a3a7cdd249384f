"""The order of a run is a pure function of the seed, the sets, the options and the step."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_order import SEEDS, epoch_samples, global_batches, made_set, orders

from mres.errors import UserError
from mres.stream.config import DataConfig
from mres.stream.order import Order, Sample
from mres.stream.rng import rng


def images(samples: list[Sample]) -> list[tuple[int, int | None]]:
    return [(sample.set, sample.index) for sample in samples]


@given(orders(weighted=False), st.integers(0, 3))
def test_every_image_once_an_epoch_and_padding_only_at_its_end(order: Order, epoch: int) -> None:
    steps = order.steps_per_epoch
    batches = global_batches(order, epoch * steps, (epoch + 1) * steps)
    assert all(len(batch) == order.images_per_batch for batch in batches)
    samples = [sample for batch in batches for sample in batch]
    assert {sample.epoch for sample in samples} == {epoch}
    assert {sample.pass_ for sample in samples[: order.num_images]} == {epoch}
    every = [(number, i) for number, shape in enumerate(order.sets) for i in range(shape.num_images)]
    assert Counter(images(samples[: order.num_images])) == Counter(every)
    assert all(sample.index is None for sample in samples[order.num_images :])


@given(orders())
def test_every_pass_visits_every_image_once_whatever_the_weights(order: Order) -> None:
    """Passes go on across the borders of epochs; only those that are not over yet may lack images."""
    seen: dict[tuple[int, int], Counter[int | None]] = {}
    for epoch in range(4):
        samples = epoch_samples(order, epoch)
        assert Counter(sample.set for sample in samples) == Counter(dict(enumerate(order.draws)))
        for sample in samples:
            seen.setdefault((sample.set, sample.pass_), Counter())[sample.index] += 1
    for (number, pass_), counts in seen.items():
        size, drawn = order.sets[number].num_images, 4 * order.draws[number]
        assert set(counts.values()) == {1}
        assert set(counts) <= set(range(size))
        assert len(counts) == min(size, drawn - pass_ * size)


@given(orders(), st.data())
def test_the_global_batch_does_not_depend_on_the_world_size(order: Order, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from([w for w in range(1, 25) if order.images_per_batch % w == 0]))
    last = 2 * order.steps_per_epoch + 1
    assert global_batches(order, 0, last, world_size) == global_batches(order, 0, last)


@given(orders(), st.data())
def test_going_on_at_any_step_is_the_continuation(order: Order, data: st.DataObject) -> None:
    last = 3 * order.steps_per_epoch
    step = data.draw(st.integers(0, last))
    whole = global_batches(order, 0, last)
    assert global_batches(order, step, last) == whole[step:]
    seen = sum(sample.index is not None for batch in whole[:step] for sample in batch)
    assert order.images_before(step) == seen
    if step < last:
        assert {sample.epoch for sample in whole[step]} == {order.epoch_of(step)}


@given(SEEDS, st.booleans(), st.sampled_from([1, 4, 1024]))
def test_epochs_and_seeds_are_shuffled_differently(seed: int, uniform: bool, window: int) -> None:
    def order(seed: int) -> Order:
        return Order(seed, [made_set(50, 8)], 10, window=window, uniform=uniform)

    orders = [images(epoch_samples(order(s), epoch)) for s, epoch in [(seed, 0), (seed, 1), (seed, 2), (seed + 1, 0)]]
    assert len(set(map(tuple, orders))) == 4


def test_images_of_a_block_meet_one_another() -> None:
    """A set of one block would be cut at the same places in each epoch if its images were not shuffled."""
    order = Order(0, [made_set(16)], 4)
    pairs: Counter[frozenset[int | None]] = Counter()
    for epoch in range(300):
        first = epoch_samples(order, epoch)[:4]
        pairs.update(frozenset((a.index, b.index)) for i, a in enumerate(first) for b in first[:i])
    assert len(pairs) == 16 * 15 / 2
    assert min(pairs.values()) > 300 * 6 / 120 * 0.3


@pytest.mark.parametrize("uniform", [False, True])
def test_every_image_is_as_likely_at_the_start_of_an_epoch(uniform: bool) -> None:
    order = Order(3, [made_set(20, 4)], 5, window=6, uniform=uniform)
    firsts = Counter(next(order.samples(e * 4, e * 4 + 1, rank=0, world_size=5))[0].index for e in range(2000))
    chi2 = sum((firsts[i] - 100) ** 2 / 100 for i in range(20))
    assert chi2 < 43.8, "the 0.1 % point of chi square with 19 degrees of freedom"


# A resumed run of an older version must find the same order. These values may only change with a reason to break all
# running runs; the state of the stream must then say so.
@pytest.mark.parametrize(
    ("uniform", "epoch", "expected"),
    [
        (
            False,
            0,
            [
                (0, 0, 2),
                (1, 0, 1),
                (1, 0, 2),
                (1, 1, 2),
                (0, 0, 0),
                (0, 0, 6),
                (0, 0, 3),
                (1, 1, 1),
                (0, 0, 1),
                (1, 0, 0),
            ],
        ),
        (
            False,
            1,
            [
                (1, 2, 1),
                (0, 0, 4),
                (1, 2, 0),
                (0, 0, 5),
                (1, 2, 2),
                (1, 1, 0),
                (0, 1, 3),
                (0, 1, 4),
                (0, 1, 5),
                (1, 3, 1),
            ],
        ),
        (
            True,
            0,
            [
                (0, 0, 5),
                (1, 0, 0),
                (0, 0, 0),
                (1, 1, 2),
                (0, 0, 3),
                (1, 0, 2),
                (0, 0, 2),
                (1, 1, 0),
                (1, 0, 1),
                (0, 0, 1),
            ],
        ),
        (
            True,
            1,
            [
                (0, 1, 3),
                (0, 0, 6),
                (1, 1, 1),
                (1, 2, 2),
                (0, 1, 1),
                (1, 3, 1),
                (1, 2, 0),
                (1, 2, 1),
                (0, 1, 4),
                (0, 0, 4),
            ],
        ),
    ],
)
def test_the_order_of_a_seed_stays_what_it_is(uniform: bool, epoch: int, expected: list) -> None:
    order = Order(0, [made_set(7, 3), made_set(3, 2)], 2, shares=[1, 1], window=8, uniform=uniform)
    assert [(sample.set, sample.pass_, sample.index) for sample in epoch_samples(order, epoch)] == expected


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.images_per_batch=6 cannot be split among 4 ranks; use a multiple of 4"):
        next(Order(0, [made_set(10)], 6).samples(0, 1, rank=0, world_size=4))


@pytest.mark.parametrize(("images_per_batch", "window"), [(32, 1024), (4096, 1024), (32, 128)])
def test_a_rank_reads_few_blocks_at_a_time(images_per_batch: int, window: int) -> None:
    """Within a window, as many as its images need, and those at its ends; between two windows, those of both."""
    order = Order(1, [made_set(200_000)], images_per_batch, window=window)
    steps = min(window, order.steps_per_epoch)
    for rank, windows in ((0, 1), (5, 2)):  # slot 0 begins with a whole window, the others' windows are shifted
        samples = [s for batch in order.samples(0, steps, rank=rank, world_size=images_per_batch) for s in batch]
        blocks = {sample.index // 64 for sample in samples if sample.index is not None}
        assert len(blocks) <= windows * (steps // 64 + 2)


@pytest.mark.parametrize("first_step", [pytest.param(0, marks=pytest.mark.exhaustive), 10**15 + 7])
@pytest.mark.parametrize(
    ("images_per_batch", "world_size", "uniform", "megabytes"),
    [(4096, 4096, False, 2), pytest.param(4096, 1, False, 16, marks=pytest.mark.exhaustive), (4096, 4096, True, 20)],
)
def test_a_million_images_need_little_memory_at_any_step(
    first_step: int, images_per_batch: int, world_size: int, uniform: bool, megabytes: int
) -> None:
    shape = made_set(1_000_000)
    tracemalloc.start()
    try:
        order = Order(0, [shape], images_per_batch, uniform=uniform)
        samples = order.samples(first_step, first_step + 10, rank=world_size - 1, world_size=world_size)
        assert sum(len(batch) for batch in samples) == 10 * images_per_batch // world_size
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@given(orders(), st.integers(0, 50), st.integers(0, 3))
def test_a_substitute_is_another_image_of_the_same_set(order: Order, step: int, attempt: int) -> None:
    for sample in next(order.samples(step, step + 1, rank=0, world_size=1)):
        if sample.index is None:
            continue
        other, size = order.substitute(sample, attempt), order.sets[sample.set].num_images
        assert (other.epoch, other.set, other.pass_) == (sample.epoch, sample.set, sample.pass_)
        assert other.index is not None
        assert 0 <= other.index < size
        assert (other.index == sample.index) == (size == 1)
        assert order.substitute(sample, attempt) == other, "the key decides"


def test_substitutes_are_spread_over_the_set() -> None:
    order = Order(0, [made_set(10)], 5)
    drawn = Counter(order.substitute(Sample(0, 0, p, 3), attempt).index for p in range(300) for attempt in range(3))
    assert set(drawn) == set(range(10)) - {3}
    assert min(drawn.values()) > 60


def test_the_description_tells_orders_apart() -> None:
    shapes = [made_set(100), made_set(50)]
    variants = [
        Order(0, shapes, 10),
        Order(0, shapes, 5),
        Order(0, shapes, 10, [1, 1]),
        Order(0, shapes, 10, window=64),
        Order(0, shapes, 10, uniform=True),
        Order(0, shapes[:1], 10),
        Order(0, [made_set(100, 32), shapes[1]], 10),
    ]
    assert len({order.description() for order in variants}) == len(variants)
    assert Order(5, shapes, 10, [100, 50]).description() == variants[0].description()
    assert variants[2].description() == (
        "75 of 100 images in 2 blocks, 75 of 50 images in 1 blocks; 10 a batch; blocks, windows of 1024"
    )


def test_the_order_that_a_config_describes() -> None:
    config = DataConfig.model_validate(
        {"train": ["a", {"path": "b", "weight": 2}], "mix_temperature": 2, "images_per_batch": 7, "shuffle_window": 9}
    )
    order = Order.from_config(config, [made_set(900), made_set(100)], seed=3)
    assert order.draws == [600, 400], "√900 : 2·√100"
    assert (order.seed, order.images_per_batch, order.window, order.uniform) == (3, 7, 9, False)
    assert Order.from_config(DataConfig(train="a", shuffle="uniform"), [made_set(9)], 0).uniform


def test_a_set_that_would_never_come_is_refused() -> None:
    config = DataConfig.model_validate({"train": ["a", {"path": "b", "weight": 1e-6}]})
    with pytest.raises(UserError, match="'b' with weight 1e-06 has less than one of the 1000 images of an epoch"):
        Order.from_config(config, [made_set(900), made_set(100)], 0)


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
