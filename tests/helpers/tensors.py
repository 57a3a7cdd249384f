"""Tensors as the formats of checkpoints have them, and formats written without a conversion around them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from mres.formats import deepspeed_write
from mres.formats.tensors import Progress, Spec, TensorSource
from mres.formats.workspace import Workspace
from mres.io.staged import Staged


def spec_of(tensor: Tensor) -> Spec:
    return Spec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """The same type, shape and bits; NaNs and signs of zeros count."""
    return spec_of(one) == spec_of(other) and bytes_of(one) == bytes_of(other)


def write_deepspeed(
    source: TensorSource, folder: Path, stage: int, world_size: int, progress: Progress = lambda _: None
) -> list[str]:
    """Into a folder that need not be there; what had to be assumed."""
    root = folder.with_name(f"{folder.name}.incomplete")
    work = workspace(root)
    notes = deepspeed_write.write_deepspeed(source, work, stage, world_size, progress)
    shutil.copytree(work.folder, folder, dirs_exist_ok=True)
    shutil.rmtree(root)
    return notes


def workspace(root: Path, purpose: str = "a test") -> Workspace:
    """One that nobody else holds, begun or taken up."""
    stage = Staged(root.with_name("out"), root, purpose)
    stage.take_up()
    return Workspace(stage)
