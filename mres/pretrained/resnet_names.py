"""CLIP's image tower where it is a ResNet (RN50, RN101 …), which has OpenAI's own names everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from mres.pretrained.parts import Parts

POOL_POSITIONS = "attnpool.positional_embedding"
_NEEDED = {"conv3.weight": 4, "layer4.0.conv3.weight": 4, "attnpool.c_proj.weight": 2, POOL_POSITIONS: 2}


def resnet_parts(clip: Parts) -> Parts:
    """The tower's tensors; nothing, where there is no such tower."""
    parts = {name.removeprefix("visual."): part for name, part in clip.items() if name.startswith("visual.")}
    if any(name not in parts or len(parts[name].shape) != count for name, count in _NEEDED.items()):
        return {}
    return parts


def resnet_sizes(tower: Parts) -> Mapping[str, Any]:
    """By neutral names; `positions` is the side of the grid of learned ones, beside which there is that of their mean."""
    stages = [{name.split(".")[1] for name in tower if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    return {
        "width": tower["conv3.weight"].shape[0],
        "layers": [len(bottlenecks) for bottlenecks in stages],
        "positions": isqrt(tower[POOL_POSITIONS].shape[0] - 1),
        "joint_width": tower["attnpool.c_proj.weight"].shape[0],
    }
