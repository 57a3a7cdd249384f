"""An image tower under timm's names: timm's own, one inside open_clip, or CLIP's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mres.pretrained.parts import Parts

PATCHES, CLASS = "pos_embed", "cls_token"
_CLIP = (  # as timm.models.vision_transformer has it
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
# What comes after the tower: classes, or CLIP's joint space.
_HEADS = ("head.", "proj")
_NEEDED = {"patch_embed.proj.weight": 4, PATCHES: 3, "blocks.0.mlp.fc1.weight": 2}


def image_parts(clip: Parts) -> Parts:
    """The tower's tensors, as far as there is a tower, and whatever lies inside it."""
    if "visual.trunk.patch_embed.proj.weight" in clip:
        return _tower(_inside(clip, "visual.trunk."))
    if "visual.conv1.weight" in clip:
        unnamed = {name: part for name, part in clip.items() if name.startswith("model.")}
        return _tower(_from_clip(_inside(clip, "visual.")) | unnamed)
    return _tower(clip)


def _inside(parts: Parts, prefix: str) -> Parts:
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def _from_clip(visual: Parts) -> Parts:
    parts: Parts = {}
    for name, part in visual.items():
        for pattern, replacement in _CLIP:
            name = re.sub(pattern, replacement, name)
        parts[name] = part
    for name, leading in ((PATCHES, 1), (CLASS, 2)):
        if name in parts:
            parts[name] = parts[name].reshaped(*[1] * leading, *parts[name].shape)
    return parts


def _tower(parts: Parts) -> Parts:
    if any(name not in parts or len(parts[name].shape) != count for name, count in _NEEDED.items()):
        return {}
    return {name: part for name, part in parts.items() if not name.startswith(_HEADS)}


def image_sizes(tower: Parts) -> Mapping[str, int | float | bool | str]:
    """By neutral names."""
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
