"""What the forms of a checkpoint share: tensors by neutral names, read one at a time, so that memory stays bounded.

Neutral names: "model.<name>" (parameters and buffers), "optim.<name>.exp_avg", ".exp_avg_sq", ".step", "ema.<name>".

A form's sink is a function `write(source, folder, progress)` that reads one tensor after another and leaves files that
the form's own library loads; `progress(num_bytes)` is called after every tensor that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MODEL, OPTIM, EMA = "model.", "optim.", "ema."
# Told how many bytes of tensors were written since it was called last.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a tensor before it is read."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class TensorSource(Protocol):
    """A checkpoint's tensors by neutral names.

    Attributes:
        specs: every tensor, in the order of the model's parameters.
        aliases: neutral names of tied tensors that are stored once: alias → the name in `specs` that holds it.
        state: what a run's state.json holds, where the source has one.
        config_yaml: the run's config, where the source has one.
    """

    @property
    def specs(self) -> Mapping[str, Spec]: ...

    @property
    def aliases(self) -> Mapping[str, str]: ...

    @property
    def state(self) -> dict[str, Any] | None: ...

    @property
    def config_yaml(self) -> str | None: ...

    def read(self, name: str) -> Tensor:
        """The whole tensor on the CPU; it may be a view of a mapped file, and is not to be changed."""
        ...


def split_by_bytes(specs: Mapping[str, Spec], max_bytes: int) -> Iterator[list[str]]:
    """The names in their order, in lists of at most `max_bytes`, or of one tensor that is larger; at least one list."""
    names: list[str] = []
    used = 0
    for name, spec in specs.items():
        if names and used + spec.num_bytes > max_bytes:
            yield names
            names, used = [], 0
        names.append(name)
        used += spec.num_bytes
    yield names
