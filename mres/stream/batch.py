"""A batch: B images × K expressions, what workers hand to the training process.

Shapes: B images, K expressions an image, S side of the square, h side of the grid of logits, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a batch with the ids of what was drawn; a slot without an image has all of `valid_K` false."""

    image_CSS: Tensor
    mask_Khh: Tensor
    text_KT: Tensor
    valid_K: Tensor
    image_id: str | None = None
    expression_ids: tuple[str, ...] = ()
    num_cut: int = 0
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors as they travel (uint8 images and masks, int32 tokens) and the ids behind them."""

    image_BCSS: Tensor
    mask_BKhh: Tensor
    text_BKT: Tensor
    valid_BK: Tensor
    image_ids: tuple[str, ...] = ()
    expression_ids: tuple[str, ...] = ()
    num_cut: int = 0
    bad: tuple[str, ...] = field(default=())

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches of equal size; the ids stay with the whole."""
        tensors = [t.chunk(parts) for t in (self.image_BCSS, self.mask_BKhh, self.text_BKT, self.valid_BK)]
        return [Batch(*pieces) for pieces in zip(*tensors, strict=True)]

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {n: getattr(self, n).to(device, non_blocking=True) for n in _TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Called by the loader's pinning thread where there is a GPU."""
        return replace(self, **{n: getattr(self, n).pin_memory() for n in _TENSORS})


_TENSORS = ("image_BCSS", "mask_BKhh", "text_BKT", "valid_BK")


def collate(samples: Sequence[Sample]) -> Batch:
    return Batch(
        torch.stack([s.image_CSS for s in samples]),
        torch.stack([s.mask_Khh for s in samples]),
        torch.stack([s.text_KT for s in samples]),
        torch.stack([s.valid_K for s in samples]),
        image_ids=tuple(s.image_id for s in samples if s.image_id is not None),
        expression_ids=tuple(e for s in samples for e in s.expression_ids),
        num_cut=sum(s.num_cut for s in samples),
        bad=tuple(s.bad for s in samples if s.bad is not None),
    )
