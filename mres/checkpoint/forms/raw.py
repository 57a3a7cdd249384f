"""Tensors as bytes: what a file holds of them, in buffers that nothing but the tensor keeps."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mres.checkpoint.forms.form import Spec

_PIECE_BYTES = 1 << 24


def raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes in the order of its elements; a copy only where it is not contiguous."""
    return flat_bytes(tensor).numpy().data


def flat_bytes(tensor: Tensor) -> Tensor:
    """The same as a tensor of uint8."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def read_tensor(descriptor: int, offset: int, spec: Spec) -> Tensor:
    """A tensor whose bytes stand in a file from `offset` on; read, not mapped: mapped pages count as this process's.

    Raises:
        OSError: the file ends before.
    """
    buffer = torch.empty(spec.num_bytes, dtype=torch.uint8)
    view = buffer.numpy().data
    done = 0
    while done < spec.num_bytes:
        got = os.preadv(descriptor, [view[done : done + _PIECE_BYTES]], offset + done)
        if not got:
            raise OSError(None, f"it ends at byte {offset + done}")
        done += got
    return buffer.view(spec.dtype).view(spec.shape)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """The same type, shape and bits; NaNs and signs of zeros count."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(flat_bytes(one), flat_bytes(other))
