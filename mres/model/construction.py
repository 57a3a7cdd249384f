"""A model's constructor, run without memory for parameters, and what is noticed of it on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from mres.errors import UserError

_TORCH = str(Path(torch.__file__).parent)
_RESETS = {"reset_parameters", "_reset_parameters"}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Every parameter moves there as it is registered, before its module fills it; a tied one keeps its identity.

    Each says then where its constructor filled it (`filled_at`).
    """
    moved = WeakIdKeyDictionary()

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if isinstance(parameter, nn.UninitializedParameter):
            raise UserError(
                f"{type(module).__name__} is a lazy module, whose '{name}' has no shape yet; name its sizes"
            )
        if parameter is None or parameter.is_meta:
            return parameter
        if parameter not in moved:
            moved[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            made.append(moved[parameter])
        return moved[parameter]

    made: list[nn.Parameter] = []
    fills = _Fills()
    hook = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        with fills:
            yield
    finally:
        hook.remove()
    for parameter in made:
        parameter._filled_at = fills.at.get(_memory(parameter))  # type: ignore[attr-defined]


class _Fills(TorchDispatchMode):
    """Notes which code was the last to write into each tensor without memory; "" for a `reset_parameters`."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            self.at[_memory(args[0])] = _who()
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _who() -> str:
    frame, place = sys._getframe(2), ""
    while frame is not None and frame.f_code is not parameters_on_meta.__wrapped__.__code__:  # type: ignore[attr-defined]
        if frame.f_code.co_name in _RESETS:
            return ""
        if not place and not frame.f_code.co_filename.startswith(_TORCH):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return place


def lost_fill(owner: nn.Module, parameter: nn.Parameter) -> str | None:
    """Where the constructor filled a parameter in a way that nothing repeats; None if it did not, or is not known to."""
    if not hasattr(parameter, "_filled_at"):
        return None
    if parameter._filled_at is None:  # one of torch's layers resets all of its own, if it is not given others
        return "not by reset_parameters" if type(owner).__module__.startswith("torch.nn.modules") else None
    return parameter._filled_at or None


def check_tensors(model: nn.Module) -> None:
    """Refuses what no strategy could train or keep.

    Raises:
        UserError: naming a parameter that is not of real numbers, or a buffer that was made from a parameter's values.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(
                f"the model's parameter '{name}' is of {parameter.dtype}; parameters are real floating-point numbers: make "
                "it a buffer if it does not train, or two parameters of real and imaginary parts"
            )
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise UserError(
                f"the model's buffer '{name}' is made from a parameter, which has no values yet where the model is made; "
                "compute it in the forward pass, or make it from something else"
            )
