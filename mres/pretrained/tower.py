"""One tower of a model from a file of another library: CLIP's text tower, timm's or CLIP's image tower.

What a file is, its tensors' names say. Sizes are read off the tensors, and what tensors do not say (heads, activation)
off the config that lies beside them, if one does; all of it must be what the model's config says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from mres.errors import UserError
from mres.formats.folder import CheckpointError
from mres.formats.weights import Weights
from mres.model import spec
from mres.model.config import ModelConfig
from mres.pretrained.clip_names import ANCHORS, Naming, clip_parts
from mres.pretrained.described import Description, Tower, describe
from mres.pretrained.families import FAMILIES, Family, change_of_positions
from mres.pretrained.files import open_tensors
from mres.pretrained.match import Matched, fit
from mres.pretrained.parts import Part, Parts
from mres.pretrained.positions import Change
from mres.pretrained.report import summary
from mres.pretrained.wrappers import one_prefix, plain_name, plain_names, prefixes_before, without_prefix

_UNSAID = ("heads", "quick_gelu")  # by tensors
_SIGLIP = "logit_bias"


@dataclass(frozen=True, slots=True)
class _Found:
    """A tower in a file: its parts under the model's names, what was changed, and what is known of it."""

    which: Tower
    tower: spec.Tower
    file: Weights
    library: str
    parts: Parts
    description: Description
    change: Change | None


def match_tower(which: Tower, model: nn.Module, config: ModelConfig, source: Path, *, strict: bool = True) -> Matched:
    """The text or image tower from a file that the model's spec has a place for (`text_weights`, `image_weights`).

    The text tower is from CLIP's files: OpenAI's, open_clip's or Hugging Face's; its positions beyond the model's text
    length are left behind. The image tower is from timm's files or from CLIP's; its positions are interpolated to the
    model's grid of patches. What of the file has no place in the model is left behind, everything else must fit.

    Args:
        model: names and shapes; it may be on the meta device.
        config: what `model` was built from.
        source: a file (safetensors, torch.save, TorchScript archive) or a folder of safetensors.
        strict: the whole tower comes, and nothing of the file's is left; else only what is in both.

    Raises:
        CheckpointError: unreadable, none of the family, or another tower; the message names the keys to set.
        UserError: the model takes no such file.
    """
    tower = _tower_of(which, config)
    family = FAMILIES[tower.family]
    file = open_tensors(source)
    library, clip, parts = _tower_in(file, family, which, f"'{source}'")
    if not parts:
        some = ", ".join(summary(map(plain_name, file.shapes))[:4]) or "no tensors"
        raise CheckpointError(f"'{source}' has no {family.tensors}; it has {some}")
    if strict and which == "text" and _SIGLIP in clip:
        raise CheckpointError(
            f"the text tower in '{source}' is SigLIP's ({_SIGLIP}), in which words also attend to those after them; "
            "mres has CLIP's, in which they do not: take a CLIP's (or all the same, with checkpoint.strict=false)"
        )
    sizes = family.sizes(parts)
    description = describe(source, which, sizes["width"], openai=library == "OpenAI CLIP")
    if description.obstacles:
        raise CheckpointError(
            f"the {which} tower in '{source}' is one that mres does not have: {', '.join(description.obstacles)} "
            f"({description.where})"
        )
    _check_same(tower, {**sizes, **description.sizes}, config, f"the {which} tower in '{source}'", strict=strict)
    shapes = {name: part.shape for name, part in parts.items()}
    change = change_of_positions(tower.family, shapes, model, tower.prefix, f"'{source}'")
    if change is not None:
        parts = parts | {change[0]: parts[change[0]].changed(change[1])}
    found = _Found(which, tower, file, library or "timm", parts, description, None if change is None else change[1])
    return _matched(model.get_submodule(tower.prefix), found, source, strict=strict)


def _tower_in(file: Weights, family: Family, which: Tower, source: str) -> tuple[Naming | None, Parts, Parts]:
    """What CLIP the file is of, its tensors and the tower's, without what stands before all of their names.

    The shortest such prefix is taken.

    Raises:
        CheckpointError: the tower is there under several of one length.
    """
    names = plain_names(file.shapes, source)
    found: dict[str, tuple[Naming | None, Parts, Parts]] = {}
    for prefix in sorted({"", *prefixes_before(names, ANCHORS)}, key=lambda prefix: prefix.count(".")):
        if found and prefix.count(".") > next(iter(found)).count("."):
            break
        inside = without_prefix(names, prefix)
        library, clip = clip_parts({name: Part((there,), file.shapes[there]) for name, there in inside.items()})
        if parts := family.parts(clip):
            found[prefix] = library, clip, parts
    return found[one_prefix(found, source, f"the {which} tower")] if found else (None, {}, {})


def _tower_of(which: Tower, config: ModelConfig) -> spec.Tower:
    model = spec.load_spec(config.kind)
    tower = model.text_weights if which == "text" else model.image_weights
    if tower is None:
        raise UserError(
            f"checkpoint.{which}_weights has no effect: {model.name} names no {which} tower that takes files"
        )
    return tower


def _check_same(tower: spec.Tower, theirs: Mapping[str, Any], config: ModelConfig, what: str, *, strict: bool) -> None:
    """The model is the tower that the file is of; one message names all keys that differ."""
    family: Family = FAMILIES[tower.family]
    differ = []
    for size, value in theirs.items():
        key = tower.keys.get(size)
        if key is None or (not strict and size in family.optional):
            continue
        mine = tower.value(config, key)
        if not (value >= mine if size == "length" else value == mine):
            differ.append((key, _plain(value), _plain(mine)))
    if differ:
        shown = ", ".join(f"{key} {value} (the model's is {mine})" for key, value, mine in differ)
        remedy = " ".join(f"model.{key}={value}" for key, value, _ in differ)
        raise CheckpointError(f"{what} does not fit: it has {shown}; set {remedy}")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _matched(module: nn.Module, found: _Found, source: Path, *, strict: bool) -> Matched:
    shapes = {name: part.shape for name, part in found.parts.items()}
    fitting = fit(module, shapes, f"'{source}'", strict=strict)
    taken = {name: part for name, part in found.parts.items() if name not in fitting.unknown}
    used = {name for part in taken.values() for name in part.names}
    left = [plain_name(name) for name in found.file.shapes if name not in used]
    restored = replace(
        fitting.restored,
        part=f"{found.which} tower",
        format=f"{found.library}, {found.file.format}",
        changed=() if found.change is None else (found.change.note,),
        left_behind=summary([*left, *found.file.others]),
        notes=(*_unsaid(found), *found.description.notes),
    )
    weights = ((name, part.read(found.file)) for name, part in taken.items())
    return Matched(restored, weights, fitting.own_names, f"{found.tower.prefix}.")


def _unsaid(found: _Found) -> tuple[str, ...]:
    sizes = [size for size in _UNSAID if size in found.tower.keys and size not in found.description.sizes]
    keys = [f"model.{found.tower.keys[size]}" for size in sizes]
    return (f"the file does not say whether {' and '.join(keys)} are its own: see to it",) if keys else ()
