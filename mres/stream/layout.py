"""An epoch's images laid in a row, before it is cut into lanes.

Legend: P pieces of the epoch, K blocks of a set, n images that are asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from mres.stream.mixture import Pieces, SetShape, narrow, passes_between, pieces_of_pass, shuffled
from mres.stream.rng import rng


class Layout(ABC):
    """Which image lies at which place of the epoch.

    Attributes:
        sources: where the epoch's images come from: (number of the set, number of the pass through it).
    """

    sources: list[tuple[int, int]]

    @abstractmethod
    def images(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """What lies at places begin … end-1: position in `sources` (n,) and number of the image in its set (n,)."""


class BlockLayout(Layout):
    """Blocks in a shuffled row; what is held is as large as the number of blocks."""

    def __init__(self, seed: int, epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> None:
        self._seed, self._sets, self.sources = seed, sets, []
        pieces: list[Pieces] = []
        for number, pass_, first, last in _passes(epoch, sets, draws):
            order_K = shuffled(len(sets[number].block_starts), seed, number, pass_, "blocks")
            pieces.append(pieces_of_pass(order_K, sets[number].block_sizes, first, last))
            self.sources.append((number, pass_))
        source_P = _numbered([len(piece.block_P) for piece in pieces])
        shuffled_P = shuffled(len(source_P), seed, epoch, "pieces")
        self._source_P = source_P[shuffled_P]
        self._block_P, self._skip_P, self._size_P = (
            np.concatenate([getattr(piece, name) for piece in pieces])[shuffled_P]
            for name in ("block_P", "skip_P", "size_P")
        )
        self._begin_P = np.cumsum(self._size_P) - self._size_P

    def images(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = np.searchsorted(self._begin_P, [begin, end - 1], side="right") - 1
        pieces = range(first, last + 1)
        source_n = np.repeat(self._source_P[pieces], self._size_P[pieces])
        image_n = np.concatenate([self._piece(p) for p in pieces])
        skip = begin - int(self._begin_P[first])
        return source_n[skip : skip + end - begin], image_n[skip : skip + end - begin]

    def _piece(self, p: int) -> np.ndarray:
        """Its images, shuffled: neighbours in a shard would otherwise always share a lane, and never meet in a batch."""
        number, pass_ = self.sources[self._source_P[p]]
        block, skip, size = int(self._block_P[p]), int(self._skip_P[p]), int(self._size_P[p])
        shape = self._sets[number]
        order = rng(self._seed, number, pass_, block, "block").permutation(int(shape.block_sizes[block]))
        return narrow(order[skip : skip + size] + shape.block_starts[block], shape.num_images)


class UniformLayout(Layout):
    """Every order is as likely; five bytes an image where there are fewer than 2^32 images and 2^8 passes."""

    def __init__(self, seed: int, epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> None:
        self.sources = []
        pieces: list[np.ndarray] = []
        for number, pass_, first, last in _passes(epoch, sets, draws):
            pieces.append(shuffled(sets[number].num_images, seed, number, pass_, "images")[first:last])
            self.sources.append((number, pass_))
        shuffled_P = shuffled(sum(draws), seed, epoch, "pieces")
        self._source_P = _numbered([len(piece) for piece in pieces])[shuffled_P]
        self._image_P = np.concatenate(pieces)[shuffled_P]

    def images(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        return self._source_P[begin:end], self._image_P[begin:end]


def _passes(epoch: int, sets: Sequence[SetShape], draws: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """What an epoch takes of which pass of which set: (set, pass, first, last position within the pass)."""
    for number, (shape, count) in enumerate(zip(sets, draws, strict=True)):
        for piece in passes_between(epoch * count, (epoch + 1) * count, shape.num_images):
            yield number, *piece


def _numbered(counts: list[int]) -> np.ndarray:
    """Each position of `counts`, as often as it says there."""
    return np.repeat(narrow(np.arange(len(counts)), len(counts)), counts)
