"""Weights into a plain model, before a strategy wraps it: from a run, a safetensors file, or CLIP's text tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from mres.checkpoint.folder import CONFIG, Checkpoint, CheckpointError
from mres.checkpoint.weights import SafetensorsWeights, open_source
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


def load_weights(model: nn.Module, config: ModelConfig, source: Path) -> Restored:
    """Strict: every parameter comes from `source`, with its shape.

    Args:
        model: its parameters are overwritten.
        config: what `model` was built from; compared with the source's own where that has one.
        source: a run's folder, a checkpoint's, an exported folder or a .safetensors file.

    Raises:
        CheckpointError: nothing there, damaged, or of another model (the first differing keys or tensors are named).
    """
    found = open_source(source)
    if found.state is not None:
        _check_same(found.state.get("model", {}), config, found.path)
    return _copy(model, dict(found.weights), str(found.path))


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


def load_text_weights(model: nn.Module, source: Path) -> Restored:
    """The text tower from a local open_clip checkpoint (.pt or .safetensors), CLIP or CustomTextCLIP.

    Positions beyond the model's text length, the image tower and the projection into CLIP's joint space, which UniRES
    does not use, are left behind; everything else must fit. Two things a checkpoint does not say: the number of heads
    (CLIP's is width / 64) and the activation (OpenAI's is model.quick_gelu).

    Raises:
        CheckpointError: unreadable, not a CLIP, or of another width, depth, vocabulary or too short a text length.
    """
    found, left_behind = _text_tower(_tensors_of(source), source)
    tower: nn.Module = model.text.tower  # type: ignore[union-attr,assignment]
    own = tower.state_dict()
    _check_sizes(_sizes(found), _sizes(own), source)
    length, positions = len(own["positional_embedding"]), found["positional_embedding"]
    if len(positions) > length:
        left_behind.append(f"positional_embedding[{length}:{len(positions)}]")
        found["positional_embedding"] = positions[:length]
    return replace(_copy(tower, found, str(source)), left_behind=tuple(left_behind))


_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")


def _text_tower(state: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tower's tensors by their plain names, and what else there is."""
    state = {name.removeprefix("module."): value for name, value in state.items()}  # DDP's
    for prefix in ("", "text."):  # CLIP's and CustomTextCLIP's
        if f"{prefix}token_embedding.weight" in state and f"{prefix}positional_embedding" in state:
            plain = {name.removeprefix(prefix): value for name, value in state.items()}
            found = {name: value for name, value in plain.items() if name.startswith(_TOWER)}
            return found, _summary(name for name in plain if name not in found)
    raise CheckpointError(f"'{source}' has no CLIP text tower (token_embedding, positional_embedding, transformer.…)")


def _sizes(tower: Mapping[str, Tensor]) -> dict[str, int]:
    vocab_size, width = tower["token_embedding.weight"].shape
    depth = len({name.split(".")[2] for name in tower if name.startswith("transformer.resblocks.")})
    length = len(tower["positional_embedding"])
    return {"text_width": width, "text_depth": depth, "text_vocab_size": vocab_size, "text_length": length}


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


def _tensors_of(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return dict(SafetensorsWeights(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}'") from None
    except Exception as error:  # torch raises a dozen types for files that are not its own
        raise CheckpointError(f"'{path}' cannot be read as tensors only: {str(error).splitlines()[0]}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _copy(model: nn.Module, found: dict[str, Tensor], source: str) -> Restored:
    """Every parameter from the tensor of its name, or of one of its names where it is used in several places."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    missing = sorted(names[0] for names in names_of.values() if not set(names) & set(found))
    unknown = sorted(set(found) - {name for names in names_of.values() for name in names})
    if missing or unknown:
        raise CheckpointError(
            f"{source} does not fit the model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    for parameter, names in names_of.items():
        _check_fits(parameter, {name: found[name] for name in names if name in found}, source)
    with torch.no_grad():
        for parameter, names in names_of.items():
            parameter.copy_(next(found[name] for name in names if name in found))
    size = sum(p.numel() * p.element_size() for p in names_of)
    return Restored(source, len(names_of), len(names_of), size, size)


def _check_fits(parameter: nn.Parameter, candidates: Mapping[str, Tensor], source: str) -> None:
    first, value = next(iter(candidates.items()))
    for name, other in candidates.items():
        if other.shape != parameter.shape:
            raise CheckpointError(
                f"{source} does not fit the model: {name} has shape {list(other.shape)}, "
                f"the model's is {list(parameter.shape)}"
            )
        if not torch.equal(other, value):
            raise CheckpointError(
                f"{source} does not fit the model: {first} and {name} are one tensor in it and differ there"
            )
