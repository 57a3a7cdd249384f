"""Weights as tensors of torch, read one at a time from a source, whichever format that is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mres.formats.tensors import MODEL, TensorSource


class Weights:
    """The weights of a source, under the model's own names; gone through, they come one after another.

    Args:
        format: what the source is, in words.
        others: names of what else is in it.
    """

    def __init__(self, source: TensorSource, format: str = "", others: Sequence[str] = ()) -> None:
        self._source, self.format, self.others = source, format, others
        self._names: dict[str, str] = {}
        specs = {name.removeprefix(MODEL): spec for name, spec in source.specs.items() if name.startswith(MODEL)}
        self.num_bytes = sum(spec.num_bytes for spec in specs.values())
        self.shapes = {name: torch.Size(spec.shape) for name, spec in specs.items()}

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Those of these names here, by the names there."""
        weights = Weights(self._source, self.format, self.others)
        weights._names = {there: self._names.get(here, here) for there, here in names.items()}
        weights.shapes = {there: self.shapes[here] for there, here in names.items()}
        return weights

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.read(name)) for name in self.shapes)

    def read(self, name: str) -> Tensor:
        """One tensor as it was stored, on the CPU. Raises: CheckpointError: its bytes are damaged or not there."""
        return read_tensor(self._source, MODEL + self._names.get(name, name))


def read_tensor(source: TensorSource, name: str) -> Tensor:
    """One tensor of a source, by its neutral name, on the CPU."""
    spec = source.specs[name]
    tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    if spec.num_bytes:
        source.read_into(name, memoryview(tensor.view(-1).view(torch.uint8).numpy().data))
    return tensor
