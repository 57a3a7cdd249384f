"""The towers of CLIP and timm: which of a file's tensors are each one's, and what sizes they say it has, by neutral names.

What gives parts gives nothing where there is no such tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from mres.pretrained.parts import Parts

# The text tower, under OpenAI's names.
WORDS = "positional_embedding"
_TEXT = ("token_embedding.", WORDS, "transformer.", "ln_final.", "text_model.")
_TEXT_NEEDED = {"token_embedding.weight": 2, WORDS: 2}
_JOINT = "text_projection"
# An image tower that is a ResNet (RN50, RN101 …), which has OpenAI's own names everywhere.
POOL_POSITIONS = "attnpool.positional_embedding"
_RESNET_NEEDED = {"conv3.weight": 4, "layer4.0.conv3.weight": 4, "attnpool.c_proj.weight": 2, POOL_POSITIONS: 2}
# An image tower that is a ViT, under timm's names: timm's own, one inside open_clip, or CLIP's.
PATCHES, CLASS = "pos_embed", "cls_token"
_VIT_NEEDED = {"patch_embed.proj.weight": 4, PATCHES: 3, "blocks.0.mlp.fc1.weight": 2}
_CLIP_VIT = (  # as timm.models.vision_transformer has it
    (r"^conv1\.", "patch_embed.proj."),
    (r"^positional_embedding$", PATCHES),
    (r"^class_embedding$", CLASS),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_VIT_HEADS = ("head.", "proj")  # what comes after it: classes, or CLIP's joint space


def _has(parts: Parts, needed: Mapping[str, int]) -> bool:
    """Whether the tensors are there that tell a tower, each of so many dimensions."""
    return all(name in parts and len(parts[name].shape) == dimensions for name, dimensions in needed.items())


def _inside(parts: Parts, prefix: str) -> Parts:
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def text_parts(clip: Parts) -> Parts:
    """Also what of the tower has no name in CLIP."""
    found = {name: part for name, part in clip.items() if name.startswith(_TEXT)}
    return found if _has(found, _TEXT_NEEDED) else {}


def text_sizes(tower: Parts) -> Mapping[str, int]:
    vocab_size, width = tower["token_embedding.weight"].shape
    depth = len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")})
    return {"width": width, "depth": depth, "vocab_size": vocab_size, "length": tower[WORDS].shape[0]}


def joint_text_parts(clip: Parts) -> Parts:
    """With the projection into CLIP's joint space."""
    found = text_parts(clip)
    return found | {_JOINT: clip[_JOINT]} if found and _has(clip, {_JOINT: 2}) else {}


def joint_text_sizes(tower: Parts) -> Mapping[str, int]:
    return {**text_sizes(tower), "joint_width": tower[_JOINT].shape[1]}


def resnet_parts(clip: Parts) -> Parts:
    parts = _inside(clip, "visual.")
    return parts if _has(parts, _RESNET_NEEDED) else {}


def resnet_sizes(tower: Parts) -> Mapping[str, Any]:
    """`positions` is the side of the grid of learned ones, beside which there is that of their mean."""
    stages = [{name.split(".")[1] for name in tower if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    return {
        "width": tower["conv3.weight"].shape[0],
        "layers": [len(bottlenecks) for bottlenecks in stages],
        "positions": isqrt(tower[POOL_POSITIONS].shape[0] - 1),
        "joint_width": tower["attnpool.c_proj.weight"].shape[0],
    }


def vit_parts(clip: Parts) -> Parts:
    """And whatever lies inside the tower."""
    if "visual.trunk.patch_embed.proj.weight" in clip:
        parts = _inside(clip, "visual.trunk.")
    elif "visual.conv1.weight" in clip:
        unnamed = {name: part for name, part in clip.items() if name.startswith("model.")}
        parts = _vit_from_clip(_inside(clip, "visual.")) | unnamed
    else:
        parts = clip
    tower = {name: part for name, part in parts.items() if not name.startswith(_VIT_HEADS)}
    return tower if _has(tower, _VIT_NEEDED) else {}


def _vit_from_clip(visual: Parts) -> Parts:
    parts: Parts = {}
    for name, part in visual.items():
        for pattern, replacement in _CLIP_VIT:
            name = re.sub(pattern, replacement, name)
        parts[name] = part
    for name, leading in ((PATCHES, 1), (CLASS, 2)):
        if name in parts:
            parts[name] = parts[name].reshaped(*[1] * leading, *parts[name].shape)
    return parts


def vit_sizes(tower: Parts) -> Mapping[str, int | float | bool | str]:
    width = tower[PATCHES].shape[2]
    return {
        "stem": "patch",
        "patch_size": tower["patch_embed.proj.weight"].shape[2],
        "width": width,
        "depth": len({name.split(".")[1] for name in tower if name.startswith("blocks.")}),
        "mlp_ratio": tower["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "class_token": CLASS in tower,
        "pre_norm": "norm_pre.weight" in tower,
    }
