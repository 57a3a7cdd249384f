"""A whole model's weights, from a run, a checkpoint, an exported folder or a .safetensors file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from mres.checkpoint.folder import CONFIG, Checkpoint, CheckpointError
from mres.checkpoint.weights import Kind, Weights, open_source
from mres.config import Config, load_config
from mres.model.config import ModelConfig
from mres.pretrained.match import Matched, copy_into, fit
from mres.pretrained.positions import Change, cut_words, fit_patches
from mres.pretrained.report import Restored, summary

# What a model may change without becoming another one.
_FREE_KEYS = {"size", "dropout"}
# And what positions are made to fit.
_FITTED_KEYS = {"image_size", "text_length"}
_PATCHES, _CLASS, _WORDS = "vision.vit.pos_embed", "vision.vit.cls_token", "text.tower.positional_embedding"


def load_weights(model: nn.Module, config: ModelConfig, source: Path, kind: Kind = "model") -> Restored:
    """`match_weights`, copied into a model that has memory."""
    return copy_into(model, match_weights(model, config, source, kind))


def match_weights(
    model: nn.Module,
    config: ModelConfig,
    source: Path,
    kind: Kind = "model",
    *,
    fit_positions: bool = False,
    strict: bool = True,
) -> Matched:
    """Weights for every parameter of the model.

    Args:
        model: names and shapes; it may be on the meta device.
        config: what `model` was built from; compared with the source's own where that has one.
        source: a run's folder, a checkpoint's, an exported folder or a .safetensors file.
        kind: the weights, or their moving average.
        fit_positions: the source may be of another image size or a longer text length; its positions are made to fit.
        strict: every parameter comes from `source`, and nothing of it is left; else both may be otherwise, and only the
            shapes of what has a place must agree.

    Raises:
        CheckpointError: nothing there, damaged, or of another model (the first differing keys or tensors are named).
    """
    found = open_source(source, kind)
    if strict and found.state is not None:
        _check_same(found.state.get("model", {}), config, found.path, free=_FITTED_KEYS if fit_positions else set())
    changes = _changes(found.weights.shapes, config, str(found.path)) if fit_positions else {}
    shapes = found.weights.shapes | {name: change.shape for name, change in changes.items()}
    fitting = fit(model, shapes, str(found.path), strict=strict)
    restored = replace(
        fitting.restored,
        changed=tuple(change.note for change in changes.values()),
        left_behind=summary(fitting.unknown),
    )
    return Matched(restored, _changed(found.weights, changes), fitting.own_names)


def _changes(shapes: Mapping[str, Any], config: ModelConfig, source: str) -> dict[str, Change]:
    changes: dict[str, Change | None] = {}
    if _PATCHES in shapes and len(shapes[_PATCHES]) == 3:
        changes[_PATCHES] = fit_patches(
            shapes[_PATCHES],
            config.image_size // config.patch_size,
            source=source,
            has_class=_CLASS in shapes,
            wants_class=config.vision_class_token,
        )
    if _WORDS in shapes and len(shapes[_WORDS]) == 2:
        changes[_WORDS] = cut_words(shapes[_WORDS], config.text_length)
    return {name: change for name, change in changes.items() if change is not None}


def _changed(weights: Weights, changes: Mapping[str, Change]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights:
        yield name, changes[name].apply(value) if name in changes else value


def check_same_model(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuses a checkpoint of another model, naming the keys that differ."""
    _check_same(checkpoint.state.get("model", {}), config, checkpoint.folder)


def _check_same(theirs: Mapping[str, Any], config: ModelConfig, where: Path, free: set[str] | None = None) -> None:
    mine = config.model_dump(mode="json")
    differ = [k for k in mine if k not in _FREE_KEYS | (free or set()) and theirs.get(k) != mine[k]]
    if differ:
        shown = ", ".join(f"model.{k} was {theirs.get(k)!r} and is now {mine[k]!r}" for k in differ[:4])
        shown += f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        own = f" ({where / CONFIG})" if where.is_dir() else ""
        raise CheckpointError(f"{where} is of another model: {shown}; use the config it was trained with{own}")


def run_config(source: Path) -> Config:
    """The config that the weights in `source` (as for `load_weights`) were trained with.

    Raises:
        CheckpointError: nothing there, damaged, or a .safetensors file that mres did not write.
        ConfigError: the config is not one of this version of mres.
    """
    found = open_source(source)
    if found.path.is_dir():
        return load_config(found.path / CONFIG)
    if found.config_yaml is None:
        raise CheckpointError(
            f"'{found.path}' does not say what model it is of (no config in its header); name the run's folder, "
            "or what tools/convert.py exported from it"
        )
    try:
        return Config.model_validate(yaml.safe_load(found.config_yaml))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the config in the header of '{found.path}' is of another version: {key}: {first['msg']}"
        ) from None
