"""How an epoch is cut into batches: into as many lanes as a batch has images; slot j of every batch reads lane j.

A rank takes a contiguous piece of the slots, so it reads its own stretches of the shards, whatever the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of an epoch: equally long, but the first ones one image longer where the last batch is not full.

    Attributes:
        num_images: of the epoch.
        images_per_batch: number of lanes.
        window: images of a lane that are shuffled among themselves.
    """

    num_images: int
    images_per_batch: int
    window: int

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-self.num_images // self.images_per_batch)

    def span(self, lane: int) -> tuple[int, int]:
        """Where a lane begins in the epoch and where the next one does."""
        return self._begin(lane), self._begin(lane + 1)

    def _begin(self, lane: int) -> int:
        full = self.num_images // self.images_per_batch
        return lane * full + min(lane, self.num_images % self.images_per_batch)

    def window_of(self, lane: Number, place: Number) -> Number:
        """The number of the window that a lane's image at `place` (from 0) is shuffled in.

        The borders of lane j's windows are shifted by the j-th part of a window: at no step do all lanes go on to new
        stretches of the shards at once.
        """
        return (place + self._shift(lane)) // self.window

    def _shift(self, lane: Number) -> Number:
        return lane * self.window // self.images_per_batch

    def windows(self, lane: int, first: int) -> Iterator[tuple[int, int, int]]:
        """(number, begin, end) of a lane's windows from that of its image `first` on, as places in the epoch."""
        lane_begin, lane_end = self.span(lane)
        number = self.window_of(lane, first)
        begin = lane_begin + number * self.window - self._shift(lane)
        while begin < lane_end:
            yield number, max(begin, lane_begin), min(begin + self.window, lane_end)
            number, begin = number + 1, begin + self.window
