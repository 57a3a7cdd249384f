"""Weights in files, tensor by tensor and without a process group: DCP, safetensors, and whatever a user names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from zipfile import is_zipfile

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mres.checkpoint.folder import CONFIG, MANIFEST, SAFETENSORS, CheckpointError
from mres.checkpoint.store import locate

PREFIX = "model."
# Which of a checkpoint's weights: those that were trained, or their moving average.
Kind = Literal["model", "ema"]
# Reading a DCP checkpoint goes through its whole index each time, so tensors are read in pieces of this size.
_PIECE_BYTES = 1 << 28


class Weights(Protocol):
    """Named tensors, read while they are gone through; their shapes are known before."""

    num_bytes: int
    shapes: dict[str, torch.Size]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


class DcpWeights:
    """The weights of a DCP checkpoint, whatever strategy wrote them; the optimizer's tensors stay where they are.

    Of "ema", what has no average (it was frozen) comes as it is.

    Raises:
        CheckpointError: it has no averages.
    """

    def __init__(self, folder: Path, kind: Kind = "model") -> None:
        self._folder = folder
        metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        found = {name: entry for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}
        plain = [name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)]
        stored = {name: f"{kind}.{name}" if f"{kind}.{name}" in found else PREFIX + name for name in plain}
        if all(name.startswith(PREFIX) for name in stored.values()) and kind != "model":
            raise CheckpointError(_no_average(folder))
        self._names = {name: plain for plain, name in stored.items()}
        self._entries = {name: found[name] for name in self._names}
        self.num_bytes = sum(map(_num_bytes, self._entries.values()))
        self.shapes = {self._names[name]: entry.size for name, entry in self._entries.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for names in self._pieces():
            state: dict[str, Any] = {
                name: torch.empty(self._entries[name].size, dtype=self._entries[name].properties.dtype)
                for name in names
            }
            with alone():
                dcp.load(state, checkpoint_id=self._folder, no_dist=True)
            for name in names:
                yield self._names[name], state.pop(name)

    def _pieces(self) -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name, entry in self._entries.items():
            if names and size + _num_bytes(entry) > _PIECE_BYTES:
                yield names
                names, size = [], 0
            names.append(name)
            size += _num_bytes(entry)
        if names:
            yield names


def _no_average(path: Path) -> str:
    return (
        f"{path} holds no moving average of the weights: it was trained without optim.ema_decay, or exported without "
        "--weights ema; take the weights themselves (evaluate.weights=model)"
    )


def _num_bytes(entry: TensorStorageMetadata) -> int:
    return int(entry.size.numel() * entry.properties.dtype.itemsize)


@contextmanager
def alone() -> Iterator[None]:
    """DCP warns about working without a process group, which is what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


class SafetensorsWeights:
    """A .safetensors file; `header` is the text in it.

    Raises:
        CheckpointError: no such file, or not one of safetensors.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="pt")
            self.num_bytes = path.stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"no such file: '{path}'") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"'{path}' is not a safetensors file that can be read: {error}") from None
        self.header: dict[str, str] = self._file.metadata() or {}
        self.shapes = {name: torch.Size(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.shapes:
            yield name, self._file.get_tensor(name)


class PickledWeights:
    """What torch.save wrote, a state_dict or what has one: tensors only, and nothing in it can run.

    Raises:
        CheckpointError: no such file, or not one of tensors.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Mapped, they are read when they are used.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        except FileNotFoundError:
            raise CheckpointError(f"no such file: '{path}'") from None
        except Exception as error:  # torch raises a dozen types for files that are not its own
            raise CheckpointError(f"'{path}' cannot be read as tensors only: {str(error).splitlines()[0]}") from None
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
        self._tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self.shapes = {name: value.shape for name, value in self._tensors.items()}
        self.num_bytes = sum(value.nbytes for value in self._tensors.values())

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._tensors.items())


@dataclass(frozen=True, slots=True)
class Source:
    """Weights and what is known about them, which of a .safetensors file that mres did not write is nothing.

    `path` is a verified checkpoint's folder or a .safetensors file; `state` has the step and the model section.
    """

    path: Path
    weights: Weights
    state: dict[str, Any] | None
    config_yaml: str | None


def open_source(path: Path, kind: Kind = "model") -> Source:
    """The weights that a user means by a run's, checkpoint's or exported folder, or by a .safetensors file.

    Of what was exported there is one kind; "model" takes it, whichever it is.

    Raises:
        CheckpointError: nothing there, damaged, or without an average.
    """
    if path.name == SAFETENSORS and (path.parent / MANIFEST).is_file():
        path = path.parent  # its manifest says whether the file is as it was written
    if path.suffix == ".safetensors" and not path.is_dir():
        source = _open_file(path)
        _check_kind(path, source.state or {}, kind)
        return source
    found = locate(path, optimizer=False)
    exported = found.folder / SAFETENSORS
    weights: Weights
    if found.weights_only:
        _check_kind(found.folder, found.state, kind)
        kind = "model"
    weights = SafetensorsWeights(exported) if exported.is_file() else DcpWeights(found.folder, kind)
    return Source(found.folder, weights, found.state, (found.folder / CONFIG).read_text(encoding="utf-8"))


def _check_kind(path: Path, state: Mapping[str, Any], kind: Kind) -> None:
    if kind == "ema" and state.get("weights") != "ema":
        raise CheckpointError(_no_average(path))


def _open_file(path: Path) -> Source:
    weights = SafetensorsWeights(path)
    header = weights.header
    if "config" not in header or "step" not in header:
        return Source(path, weights, None, None)
    try:
        model = dict(yaml.safe_load(header["config"])["model"])
        state = weights_state(int(header["step"]), model, header.get("weights", "model"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"'{path}' has a header that cannot be read: no step, or no model in its config"
        ) from None
    return Source(path, weights, state, header["config"])


def weights_state(step: int, model: dict[str, Any], kind: str) -> dict[str, Any]:
    """What state.json says beside weights without an optimizer; `kind`: which of a run's they are."""
    return {"step": step, "weights_only": True, "weights": kind, "model": model}
