"""Weights that ZeRO 3 gathered for a module must go when the module is through; autograd would keep them.

A linear layer saves a view of its weight for backward, and a view keeps the memory that it was taken of: after a forward
pass every rank would hold the whole model. What is kept instead is which view of which parameter it was. In backward,
DeepSpeed gathers a module's parameters before the module's own nodes run. (Its own remedy, `memory_efficient_linear`,
replaces `torch.nn.functional.linear` for the whole process and reaches nothing else.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True, slots=True)
class _View:
    """A view of a parameter, wherever that lies by then."""

    parameter: nn.Parameter
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor, parameter: nn.Parameter) -> _View:
        offset = int(tensor.storage_offset() - parameter.storage_offset())
        return cls(parameter, tuple(tensor.shape), tensor.stride(), offset)

    def again(self) -> Tensor:
        weight = self.parameter.detach()
        assert weight.numel() == self.parameter.ds_numel, "DeepSpeed gathers a module's parameters before its backward"  # type: ignore[attr-defined]
        return weight.as_strided(self.shape, self.stride, weight.storage_offset() + self.offset)


def gathered_weights_unsaved() -> saved_tensors_hooks:
    """Around a forward pass: what autograd saves of partitioned parameters takes no memory."""
    return saved_tensors_hooks(_pack, _unpack)


def _pack(tensor: Tensor) -> Tensor | _View:
    base = tensor._base
    return _View.of(tensor, base) if isinstance(base, nn.Parameter) and hasattr(base, "ds_numel") else tensor


def _unpack(saved: Tensor | _View) -> Tensor:
    return saved.again() if isinstance(saved, _View) else saved
