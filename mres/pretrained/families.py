"""Families of towers: which tensors of a file are one, what sizes they say it has, and how its positions are made to fit.

Sizes have neutral names (width, depth, heads …); a model's spec says which keys of its config they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import nn

from mres.pretrained.parts import Parts
from mres.pretrained.positions import Change, cut_words, fit_patches
from mres.pretrained.tower_names import (
    CLASS,
    PATCHES,
    POOL_POSITIONS,
    WORDS,
    joint_text_parts,
    joint_text_sizes,
    resnet_parts,
    resnet_sizes,
    text_parts,
    text_sizes,
    vit_parts,
    vit_sizes,
)

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, slots=True)
class Family:
    """Towers of one architecture.

    Attributes:
        tensors: what such a tower is known by, for people.
        parts: a file's tensors of it, from those under CLIP's names; nothing, where there is no such tower.
        sizes: of these, by neutral names.
        positions: the name of its position embeddings.
        fit: from the tensors' shapes, the model's module and the file's name, what makes the positions fit; None: nothing.
        optional: sizes in which tensors differ by being there, not by shape.
    """

    tensors: str
    parts: Callable[[Parts], Parts]
    sizes: Callable[[Parts], Mapping[str, Any]]
    positions: str
    fit: Callable[[Shapes, Any, str], Change | None]
    optional: frozenset[str]


def _fit_words(shapes: Shapes, module: Any, _source: str) -> Change | None:
    return cut_words(shapes[WORDS], len(module.positional_embedding)) if len(shapes[WORDS]) == 2 else None


def _fit_patches(shapes: Shapes, module: Any, source: str) -> Change | None:
    if len(shapes[PATCHES]) != 3:
        return None
    wants_class = module.cls_token is not None
    grid = isqrt(module.pos_embed.shape[1] - int(wants_class))
    return fit_patches(shapes[PATCHES], grid, source=source, has_class=CLASS in shapes, wants_class=wants_class)


_TEXT = Family(
    "CLIP text tower (token_embedding, positional_embedding, transformer.…, or text_model.… as Hugging Face names it)",
    text_parts,
    text_sizes,
    WORDS,
    _fit_words,
    frozenset({"depth"}),
)
FAMILIES: dict[str, Family] = {
    "clip-text": _TEXT,
    "clip-text-joint": replace(
        _TEXT,
        tensors="CLIP text tower with its projection (token_embedding, transformer.…, text_projection as OpenAI names them)",
        parts=joint_text_parts,
        sizes=joint_text_sizes,
    ),
    "clip-resnet": Family(
        "CLIP ResNet (visual.conv1, visual.layer1.…, visual.attnpool.… as OpenAI names them)",
        resnet_parts,
        resnet_sizes,
        POOL_POSITIONS,
        lambda *_: None,  # the model interpolates them itself
        frozenset({"layers"}),
    ),
    "vit": Family(
        "ViT (patch_embed, pos_embed, blocks.… as timm names it, visual.conv1, visual.transformer.… as CLIP does, or "
        "vision_model.… as Hugging Face does)",
        vit_parts,
        vit_sizes,
        PATCHES,
        _fit_patches,
        frozenset({"depth", "class_token", "pre_norm"}),
    ),
}


def change_of_positions(
    family: str, shapes: Shapes, model: nn.Module, prefix: str, source: str
) -> tuple[str, Change] | None:
    """The positions' name in the tower and what makes them fit, where they do not.

    Args:
        shapes: of the tower's tensors, by the tower's names.
        prefix: the tower in `model`.

    Raises:
        CheckpointError: positions that cannot be made to fit.
    """
    found = FAMILIES[family]
    change = found.fit(shapes, model.get_submodule(prefix), source) if found.positions in shapes else None
    return None if change is None else (found.positions, change)
