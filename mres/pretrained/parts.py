"""A tensor of a model, and what of a file makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mres.formats.weights import Weights
from mres.pretrained.positions import Change


@dataclass(frozen=True, slots=True)
class Part:
    """The file's tensors of these names, joined along their first axis where they are several, then changed."""

    names: tuple[str, ...]
    shape: torch.Size
    changes: tuple[Callable[[Tensor], Tensor], ...] = ()

    def read(self, file: Weights) -> Tensor:
        """float32, but for integers: half precision is how weights are stored, not how they are trained."""
        tensors = [file.read(name) for name in self.names]
        value = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        value = value.to(torch.float32) if value.is_floating_point() else value
        for change in self.changes:
            value = change(value)
        return value

    def reshaped(self, *shape: int) -> Part:
        return replace(self, shape=torch.Size(shape), changes=(*self.changes, lambda value: value.reshape(shape)))

    def changed(self, change: Change) -> Part:
        return replace(self, shape=change.shape, changes=(*self.changes, change.apply))


# By the names of the model, or of a library on the way to them.
Parts = dict[str, Part]
