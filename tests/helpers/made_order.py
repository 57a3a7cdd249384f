"""Shapes of sets and orders of them, drawn by hypothesis."""

import numpy as np
from hypothesis import strategies as st

from mres.stream.epoch import SetShape
from mres.stream.order import Order, Sample

SEEDS = st.integers(0, 2**31 - 1)


def made_set(num_images: int, block: int = 64) -> SetShape:
    return SetShape(num_images, np.arange(0, num_images, block))


@st.composite
def sets(draw: st.DrawFn, most: int = 60) -> SetShape:
    """A set whose blocks are of any sizes."""
    num_images = draw(st.integers(1, most))
    starts = draw(st.sets(st.integers(1, num_images - 1), max_size=8)) if num_images > 1 else set()
    return SetShape(num_images, np.array([0, *sorted(starts)]))


@st.composite
def orders(draw: st.DrawFn, weighted: bool = True) -> Order:
    """Any order of one to three small sets; without weights every image comes once an epoch."""
    shapes = draw(st.lists(sets(), min_size=1, max_size=3))
    shares = draw(st.lists(st.floats(0.05, 20), min_size=len(shapes), max_size=len(shapes))) if weighted else None
    batch, window = draw(st.integers(1, 24)), draw(st.integers(1, 20))
    return Order(draw(SEEDS), shapes, batch, shares, window, draw(st.booleans()))


def global_batches(order: Order, first: int, last: int, world_size: int = 1) -> list[list[Sample]]:
    """The ranks' shares of each step, one behind the other."""
    shares = [order.samples(first, last, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [[sample for share in step for sample in share] for step in zip(*shares, strict=True)]


def epoch_samples(order: Order, epoch: int = 0) -> list[Sample]:
    """All samples of an epoch, without what pads its last batch."""
    steps = order.steps_per_epoch
    return [
        s for batch in global_batches(order, epoch * steps, (epoch + 1) * steps) for s in batch if s.index is not None
    ]
