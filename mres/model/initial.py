"""How every parameter starts: its values depend on the seed and its name, and on nothing else.

torch, timm and open_clip draw a whole model from one stream of random numbers, so that one process has to hold it. Here
each tensor has a stream of its own and can be drawn alone, anywhere, in any order. The distributions are theirs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# Fills a whole tensor in place, from a generator of the CPU (None: from torch's global one).
Fill = Callable[[Tensor, torch.Generator | None], object]


def normal(std: float) -> Fill:
    return lambda tensor, draw: nn.init.normal_(tensor, std=std, generator=draw)


def uniform(bound: float) -> Fill:
    return lambda tensor, draw: nn.init.uniform_(tensor, -bound, bound, generator=draw)


def constant(value: float) -> Fill:
    return lambda tensor, _: nn.init.constant_(tensor, value)


def start(module: nn.Module) -> None:
    """Fills what `module.initialisers()` names; a constructor's last line."""
    for name, fill in module.initialisers().items():  # type: ignore[operator]
        fill(module.get_parameter(name), None)


def initial_weights(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its name, whole, float32 on the CPU, in the model's order; only one exists at a time.

    Shapes are read at once, so the model may be sharded before the first tensor is drawn.
    """
    fills = initialisers(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return ((name, _drawn(seed, name, shape, fills[name])) for name, shape in shapes.items())


def initialisers(model: nn.Module) -> dict[str, Fill]:
    """How each parameter of the model starts.

    A module says it for its own and its children's parameters in `initialisers()`; of what no module speaks of, torch's
    own layers start as torch starts them.
    """
    fills: dict[str, Fill] = {}
    modules = list(model.named_modules())
    for prefix, module in modules:
        fills |= {_join(prefix, name): fill for name, fill in _torch_initialisers(module).items()}
    for prefix, module in reversed(modules):  # outer modules have the last word
        own: dict[str, Fill] = getattr(module, "initialisers", dict)()
        fills |= {_join(prefix, name): fill for name, fill in own.items()}
    return fills


def _torch_initialisers(module: nn.Module) -> dict[str, Fill]:
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return {"weight": constant(1.0), "bias": constant(0.0)}
    if isinstance(module, nn.Linear | nn.Conv2d):
        fill = uniform(1 / math.sqrt(module.weight[0].numel()))
        return {"weight": fill, "bias": fill}
    return {}


def _drawn(seed: int, name: str, shape: torch.Size, fill: Fill) -> Tensor:
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    tensor = torch.full(shape, torch.nan)
    fill(tensor, torch.Generator().manual_seed(int.from_bytes(key, "little")))
    return tensor


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
