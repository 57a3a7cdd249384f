"""Weights into a plain model, before a strategy wraps it: from a run, a safetensors file, or CLIP's text tower."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mres.checkpoint.store import Checkpoint, CheckpointError, locate
from mres.model.config import ModelConfig

_PREFIX = "model."


@dataclass(frozen=True, slots=True)
class Restored:
    """What came into the model: tensors and bytes against all of the (part of the) model that was asked for."""

    source: str
    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int

    def __str__(self) -> str:
        share = 100 * self.bytes / max(1, self.all_bytes)
        return f"restored {self.tensors} of {self.all_tensors} tensors ({share:.1f} % of the bytes) from {self.source}"


def load_weights(model: nn.Module, config: ModelConfig, source: Path) -> Restored:
    """Strict: every parameter comes from `source` (a run, a checkpoint's folder or a .safetensors file), with its shape.

    Raises:
        CheckpointError: nothing there, damaged, or of another model (the first differing key or tensor is named).
    """
    if source.suffix == ".safetensors":
        return _copy(model, read_safetensors(source), str(source))
    checkpoint = locate(source)
    check_same_model(checkpoint, config)
    return _copy(model, read_model(checkpoint.folder), str(checkpoint.folder))


def check_same_model(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuses a checkpoint of another model, naming the keys that differ."""
    theirs, mine = checkpoint.state.get("model", {}), config.model_dump(mode="json")
    differ = [k for k in mine if k != "size" and theirs.get(k) != mine[k]]
    if differ:
        shown = ", ".join(f"model.{k} was {theirs.get(k)!r} and is now {mine[k]!r}" for k in differ[:4])
        raise CheckpointError(
            f"{checkpoint.folder} is a checkpoint of another model: {shown}; use the config it was trained with "
            f"({checkpoint.folder / 'config.yaml'})"
        )


def read_model(folder: Path) -> dict[str, Tensor]:
    """The weights of a DCP checkpoint as plain CPU tensors; no process group, whatever strategy wrote them."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}'") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is not a safetensors file that can be read: {error}") from None


def load_text_weights(model: nn.Module, source: Path) -> Restored:
    """The text tower from a local open_clip checkpoint (.pt or .safetensors), CLIP or CustomTextCLIP.

    Positions beyond the model's text length, and the projection into CLIP's joint space, which UniRES does not use, are
    left behind; everything else must fit.

    Raises:
        CheckpointError: unreadable, not a CLIP, or of another width, depth or vocabulary.
    """
    found = _text_state(_read_torch(source), source)
    tower: nn.Module = model.text.tower  # type: ignore[union-attr,assignment]
    length = tower.state_dict()["positional_embedding"].shape[0]
    if found["positional_embedding"].shape[0] < length:
        raise CheckpointError(
            f"'{source}' has {found['positional_embedding'].shape[0]} text positions, the model wants {length}; "
            "lower model.text_length"
        )
    found["positional_embedding"] = found["positional_embedding"][:length]
    return _copy(tower, found, str(source))


def _text_state(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith("text.") for name in state):
        state = {name.removeprefix("text."): value for name, value in state.items() if name.startswith("text.")}
    own = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
    found = {name: value for name, value in state.items() if name.startswith(own)}
    if "token_embedding.weight" not in found or "positional_embedding" not in found:
        raise CheckpointError(f"'{source}' has no CLIP text tower (token_embedding, positional_embedding, transformer.…)")
    return found


def _read_torch(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}'") from None
    except Exception as error:  # torch raises a dozen types for files that are not its own
        raise CheckpointError(f"'{path}' cannot be read as tensors only: {str(error).splitlines()[0]}") from None
    return state.get("state_dict", state)


def _copy(model: nn.Module, found: dict[str, Tensor], source: str) -> Restored:
    wanted = dict(model.named_parameters())
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(model.state_dict()))
    if missing or unknown:
        raise CheckpointError(
            f"{source} does not fit the model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != found[name].shape:
                raise CheckpointError(
                    f"{source} does not fit the model: {name} has shape {list(found[name].shape)}, the model's is "
                    f"{list(parameter.shape)}"
                )
            parameter.copy_(found[name])
    size = sum(p.numel() * p.element_size() for p in wanted.values())
    return Restored(source, len(wanted), len(wanted), size, size)


def model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model section that the checkpoint was trained with."""
    try:
        return ModelConfig.model_validate(checkpoint.state["model"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{checkpoint.folder / 'state.json'} has no usable model section") from None


def describe(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.folder} (step {checkpoint.step}, {json.dumps(checkpoint.state.get('stream', {}))})"
