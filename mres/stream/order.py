"""Which image each slot of each batch holds: a pure function of the seed, the sets' blocks, the shuffle options, the step.

An epoch (`epoch.py`) is a row of images, cut into as many sequences of equal length as a batch has slots: slot j of every
batch reads the j-th, shuffled window by window. Ranks and workers only cut batches into contiguous slots, so any number
of them trains on the same global batches, and a rank reads mostly its own blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from mres.errors import UserError
from mres.stream.config import DataConfig, local_batch_size
from mres.stream.epoch import BlockEpoch, SetShape, UniformEpoch, draws_of_epoch, shares_of_sets
from mres.stream.rng import rng

Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a slot of a batch holds: image `index` of set number `set`, in pass `pass_` through that set.

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
        images_per_batch: slots of a global batch.
        shares: of each set in an epoch; None: by their sizes, every image once an epoch.
        window: images of a slot's sequence that are shuffled among themselves; the larger, the more blocks are read at a
            time.
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

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller; it is padded, so that all ranks run the same number of steps."""
        return -(-self.num_images // self.images_per_batch)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def images_before(self, step: int) -> int:
        """Images consumed by all steps before `step`, over all epochs."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_images + batch * self.images_per_batch

    def samples(self, first_step: int, last_step: int, *, rank: int, world_size: int) -> Iterator[list[Sample]]:
        """A rank's slots of the global batches first_step … last_step-1.

        Raises:
            UserError: the batch cannot be split evenly among the ranks.
        """
        count = local_batch_size(self.images_per_batch, world_size)
        kind = UniformEpoch if self.uniform else BlockEpoch
        step = first_step
        while step < last_step:
            number, batch = divmod(step, self.steps_per_epoch)
            steps = min(last_step - step, self.steps_per_epoch - batch)
            epoch = kind(self.seed, number, self.sets, self.draws)
            slots = range(rank * count, (rank + 1) * count)
            sequences = [self._sequence(epoch, number, slot, batch) for slot in slots]
            for _ in range(steps):
                yield [next(sequence, Sample(number, 0, 0, None)) for sequence in sequences]
            step += steps

    def substitute(self, sample: Sample, attempt: int) -> Sample:
        """Another image of the same set, to stand in for one that is broken; the same on every rank.

        Args:
            sample: the image that is broken, as it was drawn; never an empty slot's.
            attempt: counts the images that were tried in its stead.
        """
        assert sample.index is not None, "an empty slot needs no substitute"
        others = self.sets[sample.set].num_images - 1
        if not others:
            return sample
        random = rng(self.seed, sample.set, sample.pass_, sample.index, attempt, "substitute")
        return replace(sample, index=(sample.index + 1 + int(random.integers(others))) % (others + 1))

    def description(self) -> str:
        """All that fixes the order besides the data and the seed: with another one, a run cannot be continued exactly."""
        sets = ", ".join(
            f"{draws} of {shape.num_images} images in {len(shape.block_starts)} blocks"
            for draws, shape in zip(self.draws, self.sets, strict=True)
        )
        shuffle = "uniform" if self.uniform else f"blocks, windows of {self.window}"
        return f"{sets}; {self.images_per_batch} a batch; {shuffle}"

    def span(self, slot: int) -> tuple[int, int]:
        """Where a slot's sequence begins in the epoch and where the next one does.

        They are equally long, but the first ones one image longer where the last batch is not full.
        """
        full, rest = divmod(self.num_images, self.images_per_batch)
        return slot * full + min(slot, rest), (slot + 1) * full + min(slot + 1, rest)

    def window_of(self, slot: Number, step: Number) -> Number:
        """The number of the window that a slot's image at a step of the epoch (from 0) is shuffled in.

        The borders of slot j's windows are shifted by the j-th part of a window: at no step do all slots go on to new
        stretches of the shards at once.
        """
        return (step + self._shift(slot)) // self.window

    def _shift(self, slot: Number) -> Number:
        return slot * self.window // self.images_per_batch

    def windows(self, slot: int, first: int) -> Iterator[tuple[int, int, int]]:
        """(number, begin, end) of a slot's windows from that of its image `first` on, as positions in the epoch."""
        slot_begin, slot_end = self.span(slot)
        number = self.window_of(slot, first)
        begin = slot_begin + number * self.window - self._shift(slot)
        while begin < slot_end:
            yield number, max(begin, slot_begin), min(begin + self.window, slot_end)
            number, begin = number + 1, begin + self.window

    def _sequence(self, epoch: BlockEpoch | UniformEpoch, number: int, slot: int, first: int) -> Iterator[Sample]:
        """The samples of a slot in epoch `number` from its image `first` on."""
        position = self.span(slot)[0] + first
        for window, begin, end in self.windows(slot, first):
            pass_n, image_n = self._window(epoch, (number, slot, window), begin, end)
            for i in range(max(position - begin, 0), end - begin):
                set_, pass_ = epoch.passes[pass_n[i]]
                yield Sample(number, set_, pass_, int(image_n[i]))

    def _window(
        self, epoch: BlockEpoch | UniformEpoch, key: tuple[int, int, int], begin: int, end: int
    ) -> tuple[np.ndarray, np.ndarray]:
        pass_n, image_n = epoch.images(begin, end)
        if self.uniform:
            return pass_n, image_n
        order_n = rng(self.seed, *key, "window").permutation(end - begin)
        return pass_n[order_n], image_n[order_n]
