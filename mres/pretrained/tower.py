"""One tower of the model from a file of another library: CLIP's text tower, timm's or CLIP's image tower.

What a file is, its tensors' names say. Sizes are read off the tensors, and what tensors do not say (heads, activation)
off the config that lies beside them, if one does; all of it must be what the model's config says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mres.checkpoint.folder import CheckpointError
from mres.model.config import ModelConfig
from mres.model.unires.vision import has_quick_gelu
from mres.pretrained.clip_names import clip_parts, plain_name
from mres.pretrained.described import Description, Tower, describe
from mres.pretrained.files import TensorFile, open_tensors
from mres.pretrained.match import Matched, copy_into, fit
from mres.pretrained.parts import Parts
from mres.pretrained.positions import Change, cut_words, fit_patches
from mres.pretrained.report import Restored, summary
from mres.pretrained.text_names import WORDS, text_parts, text_sizes
from mres.pretrained.vit_names import CLASS, PATCHES, image_parts, image_sizes

# What has no other shape where it differs, so that it may differ if not all of a tower need come.
_DEPTHS = ("text_depth", "vision_depth", "vision_class_token", "vision_pre_norm")
_UNSAID: Mapping[Tower, tuple[str, str]] = {
    "text": ("text_heads", "quick_gelu"),
    "image": ("vision_heads", "vision_quick_gelu"),
}
_SIGLIP = "logit_bias"


@dataclass(frozen=True, slots=True)
class _Found:
    """A tower in a file: its parts under the model's names, what was changed, and what is known of it."""

    tower: Tower
    file: TensorFile
    form: str
    parts: Parts
    description: Description
    changes: tuple[Change, ...]


def load_text_weights(model: nn.Module, config: ModelConfig, source: Path) -> Restored:
    """`match_text_weights`, copied into a model that has memory."""
    return copy_into(model, match_text_weights(model, config, source))


def load_image_weights(model: nn.Module, config: ModelConfig, source: Path) -> Restored:
    """`match_image_weights`, copied into a model that has memory."""
    return copy_into(model, match_image_weights(model, config, source))


def match_text_weights(model: nn.Module, config: ModelConfig, source: Path, *, strict: bool = True) -> Matched:
    """The text tower from CLIP's files: OpenAI's, open_clip's or Hugging Face's.

    Positions beyond the model's text length, the image tower and the projection into CLIP's joint space, which UniRES
    does not use, are left behind; everything else must fit.

    Args:
        model: names and shapes of `text.tower`; it may be on the meta device.
        config: what `model` was built from.
        source: a file (safetensors, torch.save, TorchScript archive) or a folder of safetensors.
        strict: the whole tower comes, and nothing of the file's is left; else only what is in both.

    Raises:
        CheckpointError: unreadable, not a CLIP, or another tower; the message names the keys to set.
    """
    file = open_tensors(source)
    form, clip = clip_parts(file.shapes)
    parts = text_parts(clip)
    if not parts:
        raise CheckpointError(
            f"'{source}' has no CLIP text tower (token_embedding, positional_embedding, transformer.…, or "
            f"text_model.… as Hugging Face names it); it has {_some(file)}"
        )
    if strict and _SIGLIP in clip:
        raise CheckpointError(
            f"the text tower in '{source}' is SigLIP's ({_SIGLIP}), in which words also attend to those after them; "
            "mres has CLIP's, in which they do not: take a CLIP's (or all the same, with checkpoint.strict=false)"
        )
    sizes = text_sizes(parts)
    description = describe(source, "text", sizes["text_width"], openai=form == "OpenAI CLIP")
    _check_same("text", sizes, description, config, source, strict=strict)
    change = cut_words(parts[WORDS].shape, config.text_length)
    parts, changes = _apply(parts, {WORDS: change})
    tower: nn.Module = model.text.tower  # type: ignore[union-attr,assignment]
    return _matched(tower, "text.tower.", _Found("text", file, str(form), parts, description, changes), source, strict)


def match_image_weights(model: nn.Module, config: ModelConfig, source: Path, *, strict: bool = True) -> Matched:
    """The image tower from timm's files or from CLIP's: OpenAI's, open_clip's or Hugging Face's.

    Position embeddings are interpolated to the model's grid of patches. The group tokens and the detail stem, which are
    UniRES's own, keep their first values. Arguments and errors are those of `match_text_weights`.
    """
    file = open_tensors(source)
    form, clip = clip_parts(file.shapes)
    parts = image_parts(clip)
    if not parts:
        raise CheckpointError(
            f"'{source}' has no ViT (patch_embed, pos_embed, blocks.… as timm names it, visual.conv1, "
            f"visual.transformer.… as CLIP does, or vision_model.… as Hugging Face does); it has {_some(file)}"
        )
    sizes = image_sizes(parts)
    description = describe(source, "image", parts[PATCHES].shape[2], openai=form == "OpenAI CLIP")
    _check_same("image", sizes, description, config, source, strict=strict)
    change = fit_patches(
        parts[PATCHES].shape,
        config.image_size // config.patch_size,
        source=f"'{source}'",
        has_class=CLASS in parts,
        wants_class=config.vision_class_token,
    )
    parts, changes = _apply(parts, {PATCHES: change})
    found = _Found("image", file, str(form or "timm"), parts, description, changes)
    return _matched(model.vision.vit, "vision.vit.", found, source, strict)  # type: ignore[union-attr,arg-type]


def _some(file: TensorFile) -> str:
    return ", ".join(summary(map(plain_name, file.shapes))[:4]) or "no tensors"


def _check_same(
    tower: Tower,
    sizes: Mapping[str, Any],
    description: Description,
    config: ModelConfig,
    source: Path,
    *,
    strict: bool,
) -> None:
    """The model is the tower that the file is of; one message names all keys that differ."""
    if description.obstacles:
        raise CheckpointError(
            f"the {tower} tower in '{source}' is one that mres does not have: {', '.join(description.obstacles)} "
            f"({description.where})"
        )
    theirs = {**sizes, **description.keys}
    differ = [key for key, value in theirs.items() if not _agrees(key, value, _own(config, key))]
    if not strict:
        differ = [key for key in differ if key not in _DEPTHS]
    if differ:
        shown = ", ".join(f"{key} {_plain(theirs[key])} (the model's is {_plain(_own(config, key))})" for key in differ)
        remedy = " ".join(f"model.{key}={_plain(theirs[key])}" for key in differ)
        raise CheckpointError(f"the {tower} tower in '{source}' does not fit: it has {shown}; set {remedy}")


def _own(config: ModelConfig, key: str) -> Any:
    return has_quick_gelu(config) if key == "vision_quick_gelu" else getattr(config, key)


def _agrees(key: str, theirs: Any, mine: Any) -> bool:
    return bool(theirs >= mine if key == "text_length" else theirs == mine)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _apply(parts: Parts, changes: Mapping[str, Change | None]) -> tuple[Parts, tuple[Change, ...]]:
    made = {name: change for name, change in changes.items() if change is not None}
    return parts | {name: parts[name].changed(change) for name, change in made.items()}, tuple(made.values())


def _matched(module: nn.Module, prefix: str, found: _Found, source: Path, strict: bool) -> Matched:
    shapes = {name: part.shape for name, part in found.parts.items()}
    fitting = fit(module, shapes, f"'{source}'", strict=strict)
    taken = {name: part for name, part in found.parts.items() if name not in fitting.unknown}
    used = {name for part in taken.values() for name in part.names}
    left = [plain_name(name) for name in found.file.shapes if name not in used]
    restored = replace(
        fitting.restored,
        part=f"{found.tower} tower",
        form=f"{found.form}, {found.file.form}",
        changed=tuple(change.note for change in found.changes),
        left_behind=summary([*left, *found.file.others]),
        notes=(*_unsaid(found), *found.description.notes),
    )
    return Matched(restored, _read(taken, found.file), fitting.own_names, prefix)


def _unsaid(found: _Found) -> tuple[str, ...]:
    keys = [f"model.{key}" for key in _UNSAID[found.tower] if key not in found.description.keys]
    return (f"the file does not say whether {' and '.join(keys)} are its own: see to it",) if keys else ()


def _read(parts: Parts, file: TensorFile) -> Iterator[tuple[str, Tensor]]:
    return ((name, part.read(file)) for name, part in parts.items())
