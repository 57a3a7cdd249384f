"""How often each set comes: its share of an epoch, and its own endless sequence of passes.

Legend: M sets, K blocks of a set, P pieces of an epoch.
"""

from collections.abc import Sequence
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
    exponent = 1 / temperature
    largest, heaviest = max(num_images), max(weights)  # ratios, so that nothing overflows
    parts = [w / heaviest * (n / largest) ** exponent for n, w in zip(num_images, weights, strict=True)]
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


@dataclass(frozen=True)
class Pieces:
    """Runs of a pass's images, one a block: all of the block, or what an epoch that begins or ends there has of it.

    Attributes:
        block_P: number of the block in its set.
        skip_P: images of the block, in the order of this pass, that come before the run.
        size_P: images of the run.
    """

    block_P: np.ndarray
    skip_P: np.ndarray
    size_P: np.ndarray


def passes_between(first: int, last: int, num_images: int) -> list[tuple[int, int, int]]:
    """The passes that positions first … last-1 of a set's sequence lie in: (pass, first, last position within it)."""
    passes = range(first // num_images, -(-last // num_images))
    return [(p, max(first - p * num_images, 0), min(last - p * num_images, num_images)) for p in passes]


def narrow(values: np.ndarray, bound: int) -> np.ndarray:
    """The same numbers, all from 0 to `bound`, in as few bytes as hold them."""
    return values.astype(np.min_scalar_type(bound))


def shuffled(count: int, *key: int | str) -> np.ndarray:
    """The numbers 0 … count-1 in an order drawn from the key, in as few bytes as hold them."""
    numbers = np.arange(count, dtype=np.min_scalar_type(count))
    rng(*key).shuffle(numbers)
    return numbers


def pieces_of_pass(order_K: np.ndarray, sizes_K: np.ndarray, first: int, last: int) -> Pieces:
    """What lies at positions first … last-1 of a pass through blocks of these sizes in this order."""
    ends = np.cumsum(sizes_K[order_K])
    begin, end = np.searchsorted(ends, [first, last - 1], side="right")
    block_P, ends_P = order_K[begin : end + 1], ends[begin : end + 1]
    starts_P = ends_P - sizes_K[block_P]
    skip_P = np.maximum(first - starts_P, 0)
    return Pieces(block_P, skip_P, np.minimum(ends_P, last) - starts_P - skip_P)
