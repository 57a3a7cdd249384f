"""Which image stands at which place: a pure function of the seed, the sets' blocks, the shuffle options and the step.

An epoch takes its share of each set (`mixture.py`), lays the blocks in a shuffled row (`layout.py`) and cuts the row
into lanes (`lanes.py`). Ranks and workers only cut batches into pieces, so any number of them trains on the same
global batches; a rank reads mostly its own blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mres.errors import UserError
from mres.stream.config import DataConfig, share_of_rank
from mres.stream.lanes import Lanes
from mres.stream.layout import BlockLayout, Layout, UniformLayout
from mres.stream.mixture import SetShape, draws_of_epoch, shares_of_sets
from mres.stream.rng import rng


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a batch: image `index` of set number `set`, in pass `pass_` through that set.

    An index of None pads an epoch's last batch. What is drawn for an image is keyed by its pass, not by the epoch: an
    image that an epoch draws twice is then augmented in two ways.
    """

    epoch: int
    set: int
    pass_: int
    index: int | None


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a run. Step s draws the same global batch whatever the world size.

    Attributes:
        seed: of all shuffling.
        sets: what is drawn from, at least one set.
        images_per_batch: places of a global batch.
        shares: of each set in an epoch; None: by their sizes, every image once an epoch.
        window: images of a lane that are shuffled among themselves; the larger, the more blocks are read at a time.
        uniform: shuffle image by image, without regard to where the images lie; `window` is then of no effect.
    """

    seed: int
    sets: Sequence[SetShape]
    images_per_batch: int
    shares: Sequence[float] | None = None
    window: int = 1024
    uniform: bool = False

    @classmethod
    def from_config(cls, config: DataConfig, sets: Sequence[SetShape], seed: int) -> "Order":
        """The order of training on `sets`, which are those of `data.train`.

        Raises:
            UserError: a set whose weight is so small that an epoch has none of its images.
        """
        sizes = [shape.num_images for shape in sets]
        shares = shares_of_sets(sizes, [s.weight for s in config.train_sets], config.mix_temperature)
        order = cls(seed, sets, config.images_per_batch, shares, config.shuffle_window, config.shuffle == "uniform")
        for chosen, draws in zip(config.train_sets, order.draws, strict=True):
            if not draws:
                raise UserError(
                    f"data.train: '{chosen.path}' with weight {chosen.weight:g} has less than one of the "
                    f"{order.num_images} images of an epoch; raise its weight or leave it out"
                )
        return order

    @cached_property
    def num_images(self) -> int:
        """Images of an epoch: as many as all sets have together."""
        return sum(shape.num_images for shape in self.sets)

    @cached_property
    def draws(self) -> list[int]:
        """How many images of each set an epoch has."""
        sizes = [shape.num_images for shape in self.sets]
        return draws_of_epoch(sizes, sizes if self.shares is None else self.shares)

    @cached_property
    def lanes(self) -> Lanes:
        return Lanes(self.num_images, self.images_per_batch, self.window)

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller; it is padded, so that all ranks run the same number of steps."""
        return self.lanes.steps

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def images_before(self, step: int) -> int:
        """Images consumed by all steps before `step`, over all epochs."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_images + batch * self.images_per_batch

    def slots(self, first_step: int, last_step: int, *, rank: int, world_size: int) -> Iterator[list[Slot]]:
        """A rank's share of the global batches first_step … last_step-1: a contiguous piece of each.

        Raises:
            UserError: the batch cannot be split evenly among the ranks.
        """
        share = share_of_rank(self.images_per_batch, world_size)
        step = first_step
        while step < last_step:
            epoch, batch = divmod(step, self.steps_per_epoch)
            steps = min(last_step - step, self.steps_per_epoch - batch)
            layout = self._layout(epoch)
            lanes = [self._lane(layout, epoch, lane, batch) for lane in range(rank * share, (rank + 1) * share)]
            for _ in range(steps):
                yield [next(lane, Slot(epoch, 0, 0, None)) for lane in lanes]
            step += steps

    def substitute(self, slot: Slot, attempt: int) -> Slot:
        """Another image of the same set, to stand in for one that is broken; the same on every rank.

        Args:
            slot: the place whose image is broken, as it was drawn; never an empty one.
            attempt: counts the images that were tried in its stead.
        """
        assert slot.index is not None, "an empty place needs no substitute"
        others = self.sets[slot.set].num_images - 1
        if not others:
            return slot
        random = rng(self.seed, slot.set, slot.pass_, slot.index, attempt, "substitute")
        return replace(slot, index=(slot.index + 1 + int(random.integers(others))) % (others + 1))

    def description(self) -> str:
        """All that fixes the order besides the data and the seed: with another one, a run cannot be continued exactly."""
        sets = ", ".join(
            f"{draws} of {shape.num_images} images in {len(shape.block_starts)} blocks"
            for draws, shape in zip(self.draws, self.sets, strict=True)
        )
        shuffle = "uniform" if self.uniform else f"blocks, windows of {self.window}"
        return f"{sets}; {self.images_per_batch} a batch; {shuffle}"

    def _layout(self, epoch: int) -> Layout:
        kind = UniformLayout if self.uniform else BlockLayout
        return kind(self.seed, epoch, self.sets, self.draws)

    def _lane(self, layout: Layout, epoch: int, lane: int, first: int) -> Iterator[Slot]:
        """The images of a lane from its image `first` on."""
        place = self.lanes.span(lane)[0] + first
        for window, begin, end in self.lanes.windows(lane, first):
            source_n, image_n = self._window(layout, (epoch, lane, window), begin, end)
            for i in range(max(place - begin, 0), end - begin):
                set_, pass_ = layout.sources[source_n[i]]
                yield Slot(epoch, set_, pass_, int(image_n[i]))

    def _window(self, layout: Layout, key: tuple[int, int, int], begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        source_n, image_n = layout.images(begin, end)
        if self.uniform:
            return source_n, image_n
        order_n = rng(self.seed, *key, "window").permutation(end - begin)
        return source_n[order_n], image_n[order_n]
