"""A batch: B images × K expressions, what workers hand to the training process.

Shapes: B images, K expressions an image, S side of the square, h side of the grid of logits, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mres.errors import UserError


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What the model wants: `side` of the square, `stride` of its logits, `text_length` in tokens."""

    side: int
    stride: int
    text_length: int

    @property
    def grid(self) -> int:
        """Side of the grid of logits."""
        return self.side // self.stride


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors as they travel (uint8 images and masks, int32 tokens) and the ids behind them.

    A slot without an image has all of its `valid_BK` false and no id. `bad` are messages on images that could not be
    used, `num_cut` counts expressions that lost their end, `num_not_mirrored` images that stayed as they are for their words.
    """

    image_BCSS: Tensor
    mask_BKhh: Tensor
    text_BKT: Tensor
    valid_BK: Tensor
    image_ids: tuple[str, ...] = ()
    expression_ids: tuple[str, ...] = ()
    num_cut: int = 0
    bad: tuple[str, ...] = ()
    num_not_mirrored: int = 0

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches of equal size; the ids stay with the whole."""
        tensors = [t.chunk(parts) for t in (self.image_BCSS, self.mask_BKhh, self.text_BKT, self.valid_BK)]
        return [Batch(*part) for part in zip(*tensors, strict=True)]

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in _TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Called by the loader's pinning thread where there is a GPU."""
        return replace(self, **{n: getattr(self, n).pin_memory() for n in _TENSORS})

    def clear(self, slot: int) -> None:
        """Makes a slot empty."""
        for name in _TENSORS:
            getattr(self, name)[slot].zero_()


def token_ids(
    tokenize: Callable[[Sequence[str]], tuple[Tensor, int]], texts: Sequence[str], shape: StreamShape
) -> tuple[Tensor, int]:
    """int32 ids_KT of `texts`, and how many of these had to be cut.

    Raises:
        UserError: the model's tokenizer gives something else, which could be taken for ids of all texts.
    """
    ids_KT, num_cut = tokenize(texts)
    if ids_KT.shape != (len(texts), shape.text_length) or ids_KT.is_floating_point():
        raise UserError(
            f"the model's tokenizer makes {ids_KT.dtype} of shape {tuple(ids_KT.shape)} of {len(texts)} texts; integers of "
            f"shape ({len(texts)}, {shape.text_length}) are due (the text_length of its spec's shape)"
        )
    return ids_KT.to(torch.int32), num_cut


def which_cut(tokenize: Callable[[Sequence[str]], tuple[Tensor, int]], texts: Sequence[str]) -> list[bool]:
    """Of each text, whether it is longer than the model reads."""
    return [bool(tokenize([text])[1]) for text in texts]


_TENSORS = ("image_BCSS", "mask_BKhh", "text_BKT", "valid_BK")


def empty_batch(num_images: int, num_expressions: int, shape: StreamShape, *, shared: bool) -> Batch:
    """A batch of empty slots to be filled in.

    Args:
        shared: lie in memory that other processes can be handed without a copy.
    """
    side, grid = shape.side, shape.grid
    return Batch(
        _zeros((num_images, 3, side, side), torch.uint8, shared),
        _zeros((num_images, num_expressions, grid, grid), torch.uint8, shared),
        _zeros((num_images, num_expressions, shape.text_length), torch.int32, shared),
        _zeros((num_images, num_expressions), torch.bool, shared),
    )


def _zeros(size: tuple[int, ...], dtype: torch.dtype, shared: bool) -> Tensor:
    if not shared:
        return torch.zeros(size, dtype=dtype)
    # As torch's own collate does it: a file that has no name any more, so that nothing is left behind by a kill.
    storage = torch.UntypedStorage._new_shared(math.prod(size) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, size)  # type: ignore[call-overload]
