"""Weights in files, tensor by tensor and without a process group: what a user names, in whichever form it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mres.formats.dcp import DcpSource
from mres.formats.opening import Kind, Opened, open_checkpoint, weights_of
from mres.formats.tensors import MODEL, TensorSource

__all__ = ["DcpWeights", "Kind", "Source", "Weights", "open_source", "read_tensor"]


class Weights(Protocol):
    """Named tensors, read while they are gone through; their shapes are known before."""

    num_bytes: int
    shapes: dict[str, torch.Size]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


def read_tensor(source: TensorSource, name: str) -> Tensor:
    """One tensor of a source, by its neutral name, on the CPU."""
    spec = source.specs[name]
    tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    if spec.num_bytes:
        source.read_into(name, memory_of(tensor))
    return tensor


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor that has some, and has them one after another: to be filled."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


class SourceWeights:
    """The weights of a source, under the model's own names."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._names = [name for name in source.specs if name.startswith(MODEL)]
        self.num_bytes = sum(source.specs[name].num_bytes for name in self._names)
        self.shapes = {name.removeprefix(MODEL): torch.Size(source.specs[name].shape) for name in self._names}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._names:
            yield name.removeprefix(MODEL), read_tensor(self._source, name)


class DcpWeights(SourceWeights):
    """The weights of a DCP checkpoint, whatever strategy wrote them; the optimizer's tensors stay where they are.

    Of "ema", what has no average (it was frozen) comes as it is.

    Raises:
        CheckpointError: it has no averages.
    """

    def __init__(self, folder: Path, kind: Kind = "model") -> None:
        super().__init__(weights_of(Opened(folder, DcpSource(folder)), kind))


@dataclass(frozen=True, slots=True)
class Source:
    """Weights and what is known about them, which of files that mres did not write is nothing.

    `path` is a checkpoint's folder or a .safetensors file; `state` has the step and the model section.
    """

    path: Path
    weights: Weights
    state: dict[str, Any] | None
    config_yaml: str | None


def open_source(path: Path, kind: Kind = "model") -> Source:
    """The weights that a user means by a run's, checkpoint's or exported folder, or by a .safetensors file.

    Of what was exported there is one kind; "model" takes it, whichever it is. What else is read: `open_checkpoint`.

    Raises:
        CheckpointError: nothing there, damaged, or without an average.
    """
    opened = open_checkpoint(path)
    found = weights_of(opened, kind)
    # What was verified keeps its own state, of which the weights' is a part.
    return Source(opened.path, SourceWeights(found), opened.source.state, found.config_yaml)
