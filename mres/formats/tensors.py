"""What the formats of a checkpoint share: tensors by neutral names, read one at a time, so that memory stays bounded.

Neutral names: "model.<name>" (parameters and buffers), "optim.<name>.exp_avg", ".exp_avg_sq", ".step", "ema.<name>".

Tensors are bytes here, of a shape and a type: nothing below this folder loads torch, whose libraries alone take more
memory (and longer to load) than most conversions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODEL, OPTIM, EMA = "model.", "optim.", "ema."
# Told how many bytes of tensors were written since it was called last.
Progress = Callable[[int], None]
# Types of elements by torch's names, and the bytes that one takes.
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "complex128": 16, "complex64": 8, "complex32": 4, "bool": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a tensor before it is read; `dtype` is one of `ITEM_BYTES`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]

    @property
    def is_floating(self) -> bool:
        return "float" in self.dtype


class TensorSource:
    """A checkpoint's tensors by neutral names.

    Attributes:
        specs: every tensor, in the order of the model's parameters.
        aliases: neutral names of tied tensors that are stored once: alias → the name in `specs` that holds it.
        state: what a run's state.json holds, where the source has one.
        config_yaml: the run's config, where the source has one.
        notes: what is there and does not come along, in sentences.
    """

    specs: Mapping[str, Spec]
    aliases: Mapping[str, str]
    state: dict[str, Any] | None = None
    config_yaml: str | None = None
    notes: Sequence[str] = ()

    def read_into(self, name: str, target: memoryview) -> None:
        """Fills `target`, as many bytes as the tensor has, with its elements in their order.

        Raises:
            CheckpointError: they cannot be read, or are not those that were written.
        """
        raise NotImplementedError


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
