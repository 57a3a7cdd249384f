"""Position embeddings of a file, made to fit a model's text length or image size.

Shapes: T positions of words, P of patches (and the class token), D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mres.formats.folder import CheckpointError


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a tensor after it was read: its shape then, and how to say it."""

    shape: torch.Size
    apply: Callable[[Tensor], Tensor]
    note: str


def cut_words(shape_TD: torch.Size, length: int) -> Change | None:
    """The first `length` positions, or nothing to do; too few are the caller's to refuse."""
    positions, width = shape_TD
    if positions <= length:
        return None
    return Change(
        torch.Size((length, width)),
        lambda position_TD: position_TD[:length],
        f"positional_embedding: the first {length} of {positions} positions",
    )


def fit_patches(
    shape_1PD: torch.Size, grid: int, *, source: str, has_class: bool, wants_class: bool | None = None
) -> Change | None:
    """Positions of a square grid as those of `grid` × `grid` patches: bicubic with antialiasing, as timm does it.

    The class token's position stays as it is. In a file where that token has none (timm's no_embed_class) it gets zeros,
    which is the same.

    Args:
        has_class: the file has a class token.
        wants_class: the model has one; as the file where it is not given.

    Raises:
        CheckpointError: the positions are of no square grid.
    """
    _, positions, width = shape_1PD
    prefix, side = _grid(positions, has_class=has_class, source=source)
    prefix_wanted = int(has_class if wants_class is None else wants_class)
    if side == grid and prefix == prefix_wanted:
        return None

    def apply(position_1PD: Tensor) -> Tensor:
        from timm.layers import resample_abs_pos_embed

        class_11D, patches_1PD = position_1PD[:, :prefix], position_1PD[:, prefix:]
        patches_1ND = resample_abs_pos_embed(patches_1PD, [grid, grid], [side, side], num_prefix_tokens=0)
        if not prefix:
            class_11D = position_1PD.new_zeros(1, 1, width)
        return torch.cat([class_11D[:, :prefix_wanted], patches_1ND], dim=1)

    note = [f"interpolated from {side}×{side} to {grid}×{grid} (bicubic, antialiased)"] if side != grid else []
    if prefix != prefix_wanted:
        note.append("without the class token's" if prefix else "the class token's are zeros, as it has none there")
    return Change(
        torch.Size((1, grid**2 + prefix_wanted, width)), apply, f"position embeddings of the patches: {', '.join(note)}"
    )


def _grid(positions: int, *, has_class: bool, source: str) -> tuple[int, int]:
    """(positions before those of the patches, patches a side)."""
    for prefix in (1, 0) if has_class else (0,):
        side = math.isqrt(positions - prefix)
        if side and side**2 == positions - prefix:
            return prefix, side
    raise CheckpointError(
        f"{source} has {positions} position embeddings, which are not those of a square grid of patches"
    )
