"""What a model keeps beside its parameters, such as BatchNorm's running statistics: the same on every rank, never sharded.

Forward passes change them, also that of a step which is skipped then. They have no moving average.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that `state_dict` has, by their plain names; one of several modules has the first."""
    found: dict[Tensor, str] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found.setdefault(buffer, f"{prefix}.{name}" if prefix else name)
    return {name: buffer for buffer, name in found.items()}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each by one plain name: what a checkpoint has of a model."""
    return {**dict(model.named_parameters()), **persistent_buffers(model)}


def digests(buffers: dict[str, Tensor]) -> dict[str, str]:
    """Equal where two ranks' buffers are equal to the bit."""
    return {name: hashlib.sha256(_bytes(buffer)).hexdigest() for name, buffer in buffers.items()}


def _bytes(buffer: Tensor) -> bytes:
    return buffer.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
