"""An epoch: how many images it draws of each set, and in which order their passes lie in it.

Each set is an endless sequence of passes, every image once a pass; an epoch goes on where the one before stopped.
Legend: M sets, K blocks of a set, R runs of blocks in an epoch, n images that are asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mres.stream.rng import rng


@dataclass(frozen=True, eq=False)
class SetShape:
    """What the order knows of a set.

    Attributes:
        num_images: how many it has, at least one.
        block_starts: int64 (K,), the first images of its blocks: runs of images that lie together, in one shard. The
            first is 0, each block ends where the next one begins.
    """

    num_images: int
    block_starts: np.ndarray

    def __post_init__(self) -> None:
        ends_K = np.append(self.block_starts[1:], self.num_images)
        assert len(self.block_starts), "a set has a block"
        assert self.block_starts[0] == 0, "the first block begins with the first image"
        assert (ends_K > self.block_starts).all(), "no block is empty"

    @cached_property
    def block_sizes(self) -> np.ndarray:
        """int64 (K,), images of each block."""
        return np.diff(self.block_starts, append=self.num_images)


def shares_of_sets(num_images: Sequence[int], weights: Sequence[float], temperature: float) -> list[float]:
    """The share of each set in an epoch, proportional to weight × images^(1/temperature).

    Args:
        num_images: of each of the M sets.
        weights: of each set, above 0.
        temperature: 1: as large as the sets are; larger: small sets come more often, up to all sets alike.
    """
    largest, heaviest = max(num_images), max(weights)  # ratios, so that nothing overflows
    parts = [w / heaviest * (n / largest) ** (1 / temperature) for n, w in zip(num_images, weights, strict=True)]
    return [part / sum(parts) for part in parts]


def draws_of_epoch(num_images: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How many images of each set an epoch draws: as many as all sets have together, by largest remainders."""
    total = sum(num_images)
    exact = [total * share / sum(shares) for share in shares]
    draws = [int(x) for x in exact]
    by_remainder = sorted(range(len(draws)), key=lambda i: (draws[i] - exact[i], i))
    for i in by_remainder[: total - sum(draws)]:
        draws[i] += 1
    assert sum(draws) == total, "shares are numbers of ordinary size"
    return draws


class BlockEpoch:
    """An epoch's blocks in shuffled order; what is held is as large as the number of blocks.

    Attributes:
        passes: what the epoch's images come from: (number of the set, number of the pass through it).
    """

    def __init__(self, seed: int, epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> None:
        self._seed, self._sets = seed, sets
        self.passes: list[tuple[int, int]] = []
        runs_3R: list[np.ndarray] = []
        for number, pass_, first, last in _stretches(epoch, sets, draws):
            order_K = shuffled(len(sets[number].block_starts), seed, number, pass_, "blocks")
            runs_3R.append(runs_of_pass(order_K, sets[number].block_sizes, first, last))
            self.passes.append((number, pass_))
        pass_R = _numbered([runs.shape[1] for runs in runs_3R])
        shuffled_R = shuffled(len(pass_R), seed, epoch, "pieces")
        self._pass_R = pass_R[shuffled_R]
        self._block_R, self._skip_R, self._size_R = np.concatenate(runs_3R, axis=1)[:, shuffled_R]
        self._begin_R = np.cumsum(self._size_R) - self._size_R

    def images(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The images at positions begin … end-1: position in `passes` (n,) and number of the image in its set (n,)."""
        first, last = np.searchsorted(self._begin_R, [begin, end - 1], side="right") - 1
        runs = range(first, last + 1)
        pass_n = np.repeat(self._pass_R[runs], self._size_R[runs])
        image_n = np.concatenate([self._run(r) for r in runs])
        skip = begin - int(self._begin_R[first])
        return pass_n[skip : skip + end - begin], image_n[skip : skip + end - begin]

    def _run(self, r: int) -> np.ndarray:
        """Its images, shuffled: neighbours in a shard would otherwise always share a slot, and never meet in a batch."""
        number, pass_ = self.passes[self._pass_R[r]]
        block, skip, size = int(self._block_R[r]), int(self._skip_R[r]), int(self._size_R[r])
        shape = self._sets[number]
        order = rng(self._seed, number, pass_, block, "block").permutation(int(shape.block_sizes[block]))
        return narrow(order[skip : skip + size] + shape.block_starts[block], shape.num_images)


class UniformEpoch:
    """An epoch of which every order is as likely; five bytes an image, up to 2^32 images and 2^8 passes."""

    def __init__(self, seed: int, epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> None:
        self.passes: list[tuple[int, int]] = []
        images: list[np.ndarray] = []
        for number, pass_, first, last in _stretches(epoch, sets, draws):
            images.append(shuffled(sets[number].num_images, seed, number, pass_, "images")[first:last])
            self.passes.append((number, pass_))
        order = shuffled(sum(draws), seed, epoch, "pieces")
        self._pass, self._image = _numbered([len(of_pass) for of_pass in images])[order], np.concatenate(images)[order]

    def images(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """See `BlockEpoch.images`."""
        return self._pass[begin:end], self._image[begin:end]


def _stretches(epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """What an epoch takes of which pass of which set: (set, pass, first, last position within the pass)."""
    for number, (shape, count) in enumerate(zip(sets, draws, strict=True)):
        for stretch in passes_between(epoch * count, (epoch + 1) * count, shape.num_images):
            yield number, *stretch


def passes_between(first: int, last: int, num_images: int) -> list[tuple[int, int, int]]:
    """The passes that positions first … last-1 of a set's sequence lie in: (pass, first, last position within it)."""
    passes = range(first // num_images, -(-last // num_images))
    return [(p, max(first - p * num_images, 0), min(last - p * num_images, num_images)) for p in passes]


def runs_of_pass(order_K: np.ndarray, sizes_K: np.ndarray, first: int, last: int) -> np.ndarray:
    """What lies at positions first … last-1 of a pass through blocks of these sizes in this order, int64 (3, R).

    Of each run, one a block: the number of the block in its set, how many of its images (in this pass's order) come
    before the run, and how many the run has: all, but of the block in which an epoch begins or ends.
    """
    ends_K = np.cumsum(sizes_K[order_K])
    begin, end = np.searchsorted(ends_K, [first, last - 1], side="right")
    block_R, end_R = order_K[begin : end + 1], ends_K[begin : end + 1]
    start_R = end_R - sizes_K[block_R]
    skip_R = np.maximum(first - start_R, 0)
    return np.stack([block_R.astype(np.int64), skip_R, np.minimum(end_R, last) - start_R - skip_R])


def shuffled(count: int, *key: int | str) -> np.ndarray:
    """The numbers 0 … count-1 in an order drawn from the key, in as few bytes as hold them."""
    numbers = np.arange(count, dtype=np.min_scalar_type(count))
    rng(*key).shuffle(numbers)
    return numbers


def narrow(values: np.ndarray, bound: int) -> np.ndarray:
    """The same numbers, all from 0 to `bound`, in as few bytes as hold them."""
    return values.astype(np.min_scalar_type(bound))


def _numbered(counts: list[int]) -> np.ndarray:
    """Each position of `counts`, as often as it says there."""
    return np.repeat(narrow(np.arange(len(counts)), len(counts)), counts)
