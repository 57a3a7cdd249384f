"""One precision policy, which every strategy reads.

Masters (weights, accumulated and reduced gradients, AdamW's moments) are float32 and compute is float32 or bfloat16; or
all of it is float64. bfloat16 means the same under every strategy: a forward pass sees the masters rounded to it, and
its inputs; a micro-batch's gradient of a weight comes out in it and is added up and reduced in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mres.errors import UserError
from mres.parallel.config import ParallelConfig


@dataclass(frozen=True, slots=True)
class Precision:
    """The types of a run: `master` of what is kept and reduced, `compute` of forward and backward."""

    master: torch.dtype
    compute: torch.dtype

    @classmethod
    def of(cls, config: ParallelConfig) -> Precision:
        compute: torch.dtype = getattr(torch, config.compute_dtype)
        return cls(torch.float64 if compute == torch.float64 else torch.float32, compute)

    def __str__(self) -> str:
        master, compute = (str(dtype).removeprefix("torch.") for dtype in (self.master, self.compute))
        return f"{compute} over {master} masters"


def set_backends(config: ParallelConfig, device: torch.device) -> None:
    """TF32 and the kernels of attention, for the whole process; nothing of it is left to a default of PyTorch.

    Raises:
        UserError: kernels that this device does not have.
    """
    if device.type == "cpu" and config.attention == "efficient":
        raise UserError(
            "parallel.attention=efficient has no kernel for a CPU, and this run is on one; use auto, flash or math"
        )
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cuda.enable_flash_sdp(config.attention in ("auto", "flash"))
    torch.backends.cuda.enable_mem_efficient_sdp(config.attention in ("auto", "efficient"))
    torch.backends.cuda.enable_cudnn_sdp(config.attention == "auto")
    # The one that takes any input: words are masked, which flash's CUDA kernel refuses, and so is float32.
    torch.backends.cuda.enable_math_sdp(True)


def cast_inputs(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook: floating-point inputs arrive in `dtype`."""

    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for v in inputs)

    return cast


def keep_in(model: nn.Module, master: torch.dtype) -> None:
    """Parameters in the masters' type; buffers keep their own, unless all is float64: then those of the usual type have it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(master)
    for module in model.modules() if master == torch.float64 else ():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype == torch.float32:
                module._buffers[name] = buffer.to(master)


class CastParameters:
    """Casts a model's weights to another type: from a forward pass to the end of its backward.

    That is what FSDP does with gathered weights, and unlike autocast it leaves no operation in float32. They stay cast until
    `restore_masters`, because activations that are computed again in backward must see what forward saw. Backward goes through
    the cast, so gradients reach the masters, in the masters' type.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._masters = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.is_floating_point()
        ]
        model.register_forward_pre_hook(self._cast)
        model.register_forward_hook(self._after_forward)

    def restore_masters(self) -> None:
        """The model has its masters again."""
        for module, name, master in self._masters:
            module._parameters[name] = master

    def _cast(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        cast: dict[nn.Parameter, Tensor] = {}  # a shared weight is cast once, and stays shared
        for module, name, master in self._masters:
            if master not in cast:
                cast[master] = master.to(self._dtype)
            module._parameters[name] = cast[master]  # type: ignore[assignment]

    def _after_forward(self, model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not torch.is_grad_enabled():
            self.restore_masters()
