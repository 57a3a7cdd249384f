"""Which image stands at which position: a pure function of (seed, epoch, number of images), of nothing else.

Ranks and workers only cut this order into pieces, so any number of them trains on the same global batches.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mres.stream.config import share_of_rank


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a batch: image `index` of the shard set in `epoch`; None pads an epoch's last batch."""

    epoch: int
    index: int | None


@dataclass(frozen=True)
class Order:
    """The order of a run. Step s draws the same global batch whatever the world size; every image once an epoch."""

    seed: int
    num_images: int
    images_per_batch: int

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

    def epoch_images(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, int64 (num_images,)."""
        return rng(self.seed, epoch, "order").permutation(self.num_images)

    def slots(self, first_step: int, last_step: int, *, rank: int, world_size: int) -> Iterator[list[Slot]]:
        """A rank's share of the global batches first_step … last_step-1: a contiguous piece of each."""
        share = share_of_rank(self.images_per_batch, world_size)
        permutation, permuted_epoch = np.empty(0, np.int64), -1
        for step in range(first_step, last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != permuted_epoch:
                permutation, permuted_epoch = self.epoch_images(epoch), epoch
            start = batch * self.images_per_batch + rank * share
            piece = permutation[start : min(start + share, (batch + 1) * self.images_per_batch)]
            yield [Slot(epoch, int(i)) for i in piece] + [Slot(epoch, None)] * (share - len(piece))


def rng(*key: int | str) -> np.random.Generator:
    """A random generator that depends on nothing but `key`, such as (seed, epoch, image id, purpose)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
