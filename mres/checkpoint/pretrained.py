"""Weights into a model, from a run, a safetensors file, or CLIP's text tower.

They are matched with a model by names and shapes, for which it needs no memory, and then read tensor by tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from mres.checkpoint.folder import CONFIG, Checkpoint, CheckpointError
from mres.checkpoint.weights import Kind, PickledWeights, SafetensorsWeights, open_source
from mres.config import Config, load_config
from mres.model.config import ModelConfig

# What a model may change without becoming another one.
_FREE_KEYS = {"size", "dropout"}


@dataclass(frozen=True, slots=True)
class Restored:
    """What came into the (part of the) model that was asked for, and what of the source had no place in it."""

    source: str
    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int
    left_behind: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"restored {self.tensors} of {self.all_tensors} tensors ({_percent(self.tensors, self.all_tensors)}), "
            f"{self.bytes:,} of {self.all_bytes:,} bytes ({_percent(self.bytes, self.all_bytes)}) from {self.source}"
        )
        return text + (f"; left behind: {', '.join(self.left_behind)}" if self.left_behind else "")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


@dataclass(frozen=True, slots=True)
class Matched:
    """Weights that fit a model: gone through, they come whole, one after another, by the model's names.

    Raises:
        CheckpointError: while they are gone through, tensors that are one in the model differ.
    """

    restored: Restored
    weights: Iterable[tuple[str, Tensor]]
    own_names: Mapping[str, str]  # each name that a parameter may have → the one it goes by
    prefix: str = ""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        shared = {name for name, own in self.own_names.items() if name != own}
        shared |= {self.own_names[name] for name in shared}
        kept: dict[str, tuple[str, Tensor]] = {}
        for name, value in self.weights:
            own = self.own_names[name]
            if own in kept:
                self._check_equal(kept[own], (name, value))
                continue
            if name in shared:
                kept[own] = name, value
            yield self.prefix + own, value

    def _check_equal(self, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
        if not torch.equal(first[1], second[1]):
            names = " and ".join(sorted((first[0], second[0]), key=list(self.own_names).index))
            raise CheckpointError(
                f"{self.restored.source} does not fit the model: {names} are one tensor in it and differ there"
            )


def load_weights(model: nn.Module, config: ModelConfig, source: Path, kind: Kind = "model") -> Restored:
    """`match_weights`, copied into a model that has memory."""
    return _copy(model, match_weights(model, config, source, kind))


def load_text_weights(model: nn.Module, source: Path) -> Restored:
    """`match_text_weights`, copied into a model that has memory."""
    return _copy(model, match_text_weights(model, source))


@torch.no_grad()
def _copy(model: nn.Module, matched: Matched) -> Restored:
    for name, value in matched:
        model.get_parameter(name).copy_(value)
    return matched.restored


def match_weights(model: nn.Module, config: ModelConfig, source: Path, kind: Kind = "model") -> Matched:
    """Strict: every parameter comes from `source`, with its shape.

    Args:
        model: names and shapes; it may be on the meta device.
        config: what `model` was built from; compared with the source's own where that has one.
        source: a run's folder, a checkpoint's, an exported folder or a .safetensors file.
        kind: the weights, or their moving average.

    Raises:
        CheckpointError: nothing there, damaged, or of another model (the first differing keys or tensors are named).
    """
    found = open_source(source, kind)
    if found.state is not None:
        _check_same(found.state.get("model", {}), config, found.path)
    restored, own_names = _match(model, found.weights.shapes, str(found.path))
    return Matched(restored, found.weights, own_names)


def check_same_model(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuses a checkpoint of another model, naming the keys that differ."""
    _check_same(checkpoint.state.get("model", {}), config, checkpoint.folder)


def _check_same(theirs: Mapping[str, Any], config: ModelConfig, where: Path) -> None:
    mine = config.model_dump(mode="json")
    differ = [k for k in mine if k not in _FREE_KEYS and theirs.get(k) != mine[k]]
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


def match_text_weights(model: nn.Module, source: Path) -> Matched:
    """The text tower from a local open_clip checkpoint (.pt or .safetensors), CLIP or CustomTextCLIP.

    Positions beyond the model's text length, the image tower and the projection into CLIP's joint space, which UniRES
    does not use, are left behind; everything else must fit. Two things a checkpoint does not say: the number of heads
    (CLIP's is width / 64) and the activation (OpenAI's is model.quick_gelu).

    Raises:
        CheckpointError: unreadable, not a CLIP, or of another width, depth, vocabulary or too short a text length.
    """
    weights = SafetensorsWeights(source) if source.suffix == ".safetensors" else PickledWeights(source)
    names, left_behind = _text_tower(weights.shapes, source)
    shapes = {own: weights.shapes[name] for name, own in names.items()}
    tower: nn.Module = model.text.tower  # type: ignore[union-attr,assignment]
    own_shapes = {name: parameter.shape for name, parameter in tower.named_parameters()}
    _check_sizes(_sizes(shapes), _sizes(own_shapes), source)
    (positions, width), length = shapes[_POSITIONS], own_shapes[_POSITIONS][0]
    if positions > length:
        left_behind.append(f"{_POSITIONS}[{length}:{positions}]")
        shapes[_POSITIONS] = torch.Size((length, width))
    restored, own_names = _match(tower, shapes, str(source))
    taken = ((names[n], value[:length] if names[n] == _POSITIONS else value) for n, value in weights if n in names)
    return Matched(replace(restored, left_behind=tuple(left_behind)), taken, own_names, prefix="text.tower.")


_POSITIONS = "positional_embedding"
_TOWER = ("token_embedding.", _POSITIONS, "transformer.", "ln_final.")


def _text_tower(names: Iterable[str], source: Path) -> tuple[dict[str, str], list[str]]:
    """The tower's tensors, each name and its plain one, and what else there is."""
    plain = {name: name.removeprefix("module.") for name in names}  # DDP's
    for prefix in ("", "text."):  # CLIP's and CustomTextCLIP's
        own = {name: known.removeprefix(prefix) for name, known in plain.items()}
        if {f"{prefix}token_embedding.weight", prefix + _POSITIONS} <= set(plain.values()):
            found = {name: known for name, known in own.items() if known.startswith(_TOWER)}
            return found, _summary(known for name, known in own.items() if name not in found)
    raise CheckpointError(f"'{source}' has no CLIP text tower (token_embedding, positional_embedding, transformer.…)")


def _sizes(tower: Mapping[str, torch.Size]) -> dict[str, int]:
    vocab_size, width = tower["token_embedding.weight"]
    depth = len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")})
    return {
        "text_width": width,
        "text_depth": depth,
        "text_vocab_size": vocab_size,
        "text_length": tower[_POSITIONS][0],
    }


def _check_sizes(theirs: Mapping[str, int], mine: Mapping[str, int], source: Path) -> None:
    differ = [key for key in mine if (theirs[key] < mine[key] if key == "text_length" else theirs[key] != mine[key])]
    if differ:
        shown = ", ".join(f"{key} {theirs[key]} (the model's is {mine[key]})" for key in differ)
        remedy = " ".join(f"model.{key}={theirs[key]}" for key in differ)
        raise CheckpointError(f"the text tower in '{source}' does not fit: it has {shown}; set {remedy}")


def _summary(names: Iterable[str]) -> list[str]:
    """Names by their first part, so that an image tower is one entry."""
    counts = Counter(name.split(".")[0] + (".*" if "." in name else "") for name in names)
    return [f"{head} ({count} tensors)" if head.endswith("*") else head for head, count in counts.items()]


def _match(model: nn.Module, found: Mapping[str, torch.Size], source: str) -> tuple[Restored, dict[str, str]]:
    """Every parameter has a tensor of its name, or of one of its names where it is used in several places."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    missing = sorted(names[0] for names in names_of.values() if not set(names) & set(found))
    own_names = {name: names[0] for names in names_of.values() for name in names}
    unknown = sorted(set(found) - set(own_names))
    if missing or unknown:
        raise CheckpointError(
            f"{source} does not fit the model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    for parameter, names in names_of.items():
        for name in names:
            if name in found and found[name] != parameter.shape:
                raise CheckpointError(
                    f"{source} does not fit the model: {name} has shape {list(found[name])}, "
                    f"the model's is {list(parameter.shape)}"
                )
    size = sum(parameter.numel() * parameter.element_size() for parameter in names_of)
    return Restored(source, len(names_of), len(names_of), size, size), own_names
