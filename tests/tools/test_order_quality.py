"""How far an order is from a uniform shuffle."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from benchmarks.order_quality import OrderQuality, measure
from hypothesis import given
from made_order import epoch_samples, global_batches, made_set, orders

from mres.stream.order import Order

SHARDS = [np.arange(0, 50_000, 1000)]


def measured(**options) -> OrderQuality:
    return measure(Order(0, [made_set(50_000)], 16, **options), shard_starts=SHARDS)


def test_a_uniform_shuffle_is_its_own_measure() -> None:
    found = measured(uniform=True)
    assert found.displacement == pytest.approx(1, abs=0.02)
    assert found.neighbours == pytest.approx(1, abs=0.15)  # some 470 pairs
    assert found.blocks_per_batch == pytest.approx(1, abs=0.005)
    assert found.shards_per_batch == pytest.approx(1, abs=0.01)
    assert abs(found.serial_correlation) < 0.02
    assert found.images_per_fetch < 5


def test_blocks_are_nearly_as_well_shuffled_and_read_in_stretches() -> None:
    found = measured()
    assert found.displacement == pytest.approx(1, abs=0.06)
    assert found.neighbours < 0.2, "a slot reads other blocks than the others"
    assert 1 <= found.blocks_per_batch < 1.02
    assert 1 <= found.shards_per_batch < 1.05
    assert found.serial_correlation < 0.1, "about 64 images of a block among the 1024 of a window"
    assert found.images_per_fetch > 55
    assert found.blocks_per_window < 1024 / 64 + 2


def test_a_small_window_shuffles_less_and_keeps_fewer_blocks() -> None:
    small, large = measured(window=64), measured()
    assert small.serial_correlation > 3 * large.serial_correlation
    assert small.blocks_per_window < 3
    assert small.images_per_fetch == large.images_per_fetch


@given(orders())
def test_any_order_can_be_measured(order: Order) -> None:
    found = dataclasses.asdict(measure(order, epoch=1))
    assert found.pop("shards_per_batch") is None
    assert all(np.isfinite(value) for value in found.values())


def test_the_figures_of_a_small_order_are_those_counted_by_hand() -> None:
    order = Order(2, [made_set(40, 5), made_set(10, 5)], 6, [3, 1], window=4)
    found = measure(order)
    samples = epoch_samples(order)
    places = {sample: place for place, sample in enumerate(sorted(samples, key=lambda s: (s.set, s.pass_, s.index)))}
    moved = [abs(places[sample] - place) for place, sample in enumerate(samples)]
    assert found.displacement == pytest.approx(np.mean(moved) / (50 / 3))
    batches = [
        [(s.set, s.index // 5) for s in batch if s.index is not None]
        for batch in global_batches(order, 0, order.steps_per_epoch)
    ]
    random = np.random.default_rng(0)
    blocks = [block for batch in batches for block in batch]
    ends = np.cumsum([len(batch) for batch in batches])[:-1]

    def distinct(batches: list) -> int:
        return sum(len(set(batch)) for batch in batches)

    def pairs(batches: list) -> int:
        return sum(n * (n - 1) // 2 for batch in batches for n in Counter(batch).values())

    numbers = {block: i for i, block in enumerate(sorted(set(blocks)))}
    uniform = [
        [part.tolist() for part in np.split(random.permutation([numbers[b] for b in blocks]), ends)]
        for _ in range(2000)
    ]
    assert found.blocks_per_batch == pytest.approx(
        distinct(batches) / np.mean([distinct(u) for u in uniform]), rel=0.01
    )
    assert found.neighbours == pytest.approx(pairs(batches) / np.mean([pairs(u) for u in uniform]), rel=0.03)
