"""CLIP's text tower: which tensors are of it, and what sizes they say it has."""

from __future__ import annotations

from collections.abc import Mapping

from mres.pretrained.parts import Parts

WORDS = "positional_embedding"
_JOINT = "text_projection"
_TOWER = ("token_embedding.", WORDS, "transformer.", "ln_final.", "text_model.")


def text_parts(clip: Parts) -> Parts:
    """The tower's tensors, of which the last kind is what of it has no name in CLIP; nothing, where there is no tower."""
    found = {name: part for name, part in clip.items() if name.startswith(_TOWER)}
    dimensions = {name: len(found[name].shape) for name in ("token_embedding.weight", WORDS) if name in found}
    return found if list(dimensions.values()) == [2, 2] else {}


def joint_text_parts(clip: Parts) -> Parts:
    """Those, and the projection into CLIP's joint space."""
    found = text_parts(clip)
    return found | {_JOINT: clip[_JOINT]} if found and _JOINT in clip and len(clip[_JOINT].shape) == 2 else {}


def joint_text_sizes(tower: Parts) -> Mapping[str, int]:
    return {**text_sizes(tower), "joint_width": tower[_JOINT].shape[1]}


def text_sizes(tower: Parts) -> Mapping[str, int]:
    """By neutral names."""
    vocab_size, width = tower["token_embedding.weight"].shape
    depth = len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")})
    return {
        "width": width,
        "depth": depth,
        "vocab_size": vocab_size,
        "length": tower[WORDS].shape[0],
    }
