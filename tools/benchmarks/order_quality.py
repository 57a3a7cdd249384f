"""How far an order is from a uniform shuffle, and what it costs to read.

Legend: n images of an epoch, in the order in which they are drawn; U units (blocks, or shards).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mres.stream.order import Order


@dataclass(frozen=True)
class OrderQuality:
    """What `measure` found. Ratios are to a uniform shuffle's expectation: 1 is as good.

    Attributes:
        displacement: how far an image comes from where it lies in its set; a uniform shuffle moves it by a third of the
            epoch.
        neighbours: how often two images of one block meet in a batch.
        blocks_per_batch: distinct blocks in a batch.
        shards_per_batch: distinct shards in a batch; None where the shards are not known.
        serial_correlation: correlation of the places in the sets of what a slot reads in successive steps; the means of
            successive batches are correlated no more. A uniform shuffle has 0.
        images_per_fetch: images read of a block before the slot is done with it, that is, has not come back to it for
            two windows. Times the bytes of a record, it is what a seek or a request of a block is good for.
        blocks_per_window: blocks that a slot reads of at a time: what a cache should hold, times the slots of a rank.
    """

    displacement: float
    neighbours: float
    blocks_per_batch: float
    shards_per_batch: float | None
    serial_correlation: float
    images_per_fetch: float
    blocks_per_window: float


def measure(order: Order, epoch: int = 0, shard_starts: Sequence[np.ndarray] | None = None) -> OrderQuality:
    """Draws a whole epoch and measures it.

    Args:
        order: the order.
        epoch: which one.
        shard_starts: int64, of each set the first images of its shards.
    """
    step_n, slot_n, set_n, pass_n, image_n = _drawn(order, epoch)
    block_n = _units([shape.block_starts for shape in order.sets], set_n, image_n)
    window_n = order.window_of(slot_n, step_n)
    place_n = np.empty(len(step_n))
    place_n[np.lexsort((image_n, pass_n, set_n))] = np.arange(len(step_n))
    blocks_of_windows = _count(slot_n, window_n, block_n)
    return OrderQuality(
        displacement=float(np.abs(place_n - np.arange(len(place_n))).mean() / (len(place_n) / 3)),
        neighbours=_meetings(block_n, step_n),
        blocks_per_batch=_distinct(block_n, step_n),
        shards_per_batch=None if shard_starts is None else _distinct(_units(shard_starts, set_n, image_n), step_n),
        serial_correlation=_serial_correlation(place_n, order.images_per_batch),
        images_per_fetch=len(block_n) / _fetches(slot_n, block_n, step_n, reach=2 * order.window),
        blocks_per_window=blocks_of_windows / _count(slot_n, window_n),
    )


def _drawn(order: Order, epoch: int) -> np.ndarray:
    """int64 (5, n): step within the epoch, slot, set, pass and number of every image."""
    first = epoch * order.steps_per_epoch
    batches = enumerate(order.samples(first, first + order.steps_per_epoch, rank=0, world_size=1))
    flat = (
        value
        for step, batch in batches
        for slot, sample in enumerate(batch)
        if sample.index is not None
        for value in (step, slot, sample.set, sample.pass_, sample.index)
    )
    return np.fromiter(flat, np.int64, 5 * order.num_images).reshape(-1, 5).T


def _units(starts: Sequence[np.ndarray], set_n: np.ndarray, image_n: np.ndarray) -> np.ndarray:
    """int64 (n,), the unit of each image, numbered over all sets; `starts` has the first images of each set's units."""
    unit_n, before = np.empty_like(image_n), 0
    for number, starts_U in enumerate(starts):
        of_set = set_n == number
        unit_n[of_set] = before + np.searchsorted(starts_U, image_n[of_set], side="right") - 1
        before += len(starts_U)
    return unit_n


def _sizes(*keys: np.ndarray) -> np.ndarray:
    """How many images have each combination of keys."""
    order = np.lexsort(keys)
    changes = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return np.diff(np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]]))


def _count(*keys: np.ndarray) -> int:
    return len(_sizes(*keys))


def _pairs(sizes: np.ndarray) -> float:
    return float((sizes * (sizes - 1.0) / 2).sum())


def _meetings(unit_n: np.ndarray, step_n: np.ndarray) -> float:
    """Pairs of one unit in one batch, relative to a uniform shuffle."""
    of_batches, of_units, of_all = _pairs(_sizes(step_n)), _pairs(_sizes(unit_n)), _pairs(np.array([len(unit_n)]))
    if not of_batches or not of_units:
        return 1.0
    return _pairs(_sizes(step_n, unit_n)) / (of_batches * of_units / of_all)


def _distinct(unit_n: np.ndarray, step_n: np.ndarray) -> float:
    """Distinct units in a batch, relative to a uniform shuffle."""
    unit_sizes, units = np.unique(_sizes(unit_n), return_counts=True)
    batch_sizes, batches = np.unique(_sizes(step_n), return_counts=True)
    expected = sum(
        float(num_batches) * float(num_units) * _meets(int(size), int(batch), len(unit_n))
        for batch, num_batches in zip(batch_sizes, batches, strict=True)
        for size, num_units in zip(unit_sizes, units, strict=True)
    )
    return _count(step_n, unit_n) / expected


def _meets(size: int, batch: int, total: int) -> float:
    """The probability that a batch drawn of `total` images has one of a unit of `size` images."""
    if size + batch > total:
        return 1.0
    without = math.lgamma(total - size + 1) - math.lgamma(total - size - batch + 1)
    return 1 - math.exp(without - math.lgamma(total + 1) + math.lgamma(total - batch + 1))


def _fetches(slot_n: np.ndarray, block_n: np.ndarray, step_n: np.ndarray, reach: int) -> int:
    """How often a slot reads of a block that it has not read of for `reach` steps."""
    order = np.lexsort((step_n, block_n, slot_n))
    same = (np.diff(slot_n[order]) == 0) & (np.diff(block_n[order]) == 0) & (np.diff(step_n[order]) <= reach)
    return len(order) - int(same.sum())


def _serial_correlation(place_n: np.ndarray, images_per_batch: int) -> float:
    if len(place_n) < images_per_batch + 2:
        return 0.0
    spread = place_n - place_n.mean()
    return float((spread[:-images_per_batch] * spread[images_per_batch:]).mean() / (spread**2).mean())
