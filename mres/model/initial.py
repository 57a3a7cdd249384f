"""How every parameter starts: its values depend on the seed and its name, and on nothing else.

torch, timm and open_clip draw a whole model from one stream of random numbers, so that one process has to hold it. Here
each tensor has a stream of its own and can be drawn alone, anywhere, in any order. The distributions are theirs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mres.errors import UserError
from mres.model.construction import lost_fill

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

    Raises:
        UserError: at once, of a parameter that nothing fills; while tensors are drawn, of one that `reset_parameters` does
            not fill after all.
    """
    fills = initialisers(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return ((name, _drawn(seed, name, shape, fills[name])) for name, shape in shapes.items())


def initialisers(model: nn.Module) -> dict[str, Fill | Reset]:
    """How each parameter of the model starts; one of several names has the first.

    A module says it for its own and its children's parameters in `initialisers()`. Of what no module speaks of, torch's
    own layers start as torch starts them, and others by their `reset_parameters`.

    Raises:
        UserError: none of these fills a parameter, or the constructor fills it otherwise.
    """
    modules = list(model.named_modules())
    fills: dict[str, Fill | Reset] = {}
    for prefix, module in modules:
        fills |= {_join(prefix, name): fill for name, fill in _torch_initialisers(module).items()}
    resets = {prefix: _without_memory(module) for prefix, module in modules if _own_reset(module) is not None}
    first: dict[nn.Parameter, str] = {parameter: name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        around = [prefix for prefix in resets if name.startswith(_join(prefix, ""))]
        if around and first[parameter] == name:
            fills[name] = Reset(name, {prefix: resets[prefix] for prefix in around}, fills.get(name))
    said: dict[str, Fill] = {}
    for prefix, module in reversed(modules):  # outer modules have the last word
        own: dict[str, Fill] = getattr(module, "initialisers", dict)()
        said |= {_first_name(model, first, _join(prefix, name)): fill for name, fill in own.items()}
    for parameter, name in first.items():
        if name not in fills and name not in said:
            raise _no_start(name)
        lost = lost_fill(model.get_submodule(name.rpartition(".")[0]), parameter)
        if lost and name not in said:
            raise UserError(
                f"the constructor gives the model's parameter '{name}' values of its own ({lost}), which are not kept: "
                "they are drawn by the seed and its name. Say them in a method initialisers() of the model "
                f"({{'{name}': mres.model.initial.normal(0.02)}}, or uniform, constant), or in a reset_parameters()"
            )
    return fills | said


def _first_name(model: nn.Module, first: Mapping[nn.Parameter, str], name: str) -> str:
    module, _, own = name.rpartition(".")
    parameter = model.get_submodule(module)._parameters.get(own)
    return name if parameter is None else first[parameter]


def _torch_initialisers(module: nn.Module) -> dict[str, Fill]:
    if _own_reset(module) is not None:
        return {}
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return {"weight": constant(1.0), "bias": constant(0.0)}
    if isinstance(module, nn.Linear | nn.Conv2d):
        fill = uniform(1 / math.sqrt(module.weight[0].numel()))
        return {"weight": fill, "bias": fill}
    return {}


_DRAWN_ALONE = (nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Conv2d)  # what `_torch_initialisers` knows


def _own_reset(module: nn.Module) -> Callable[[nn.Module], object] | None:
    """How a module's class fills its parameters, if not as those do."""
    for name in ("reset_parameters", "_reset_parameters"):
        reset: Callable[[nn.Module], object] | None = getattr(type(module), name, None)
        if reset is not None:
            known = any(isinstance(module, kind) and reset is getattr(kind, name, None) for kind in _DRAWN_ALONE)
            return None if known else reset
    return None


@dataclass(frozen=True, slots=True)
class Reset:
    """How a parameter starts that `reset_parameters` of its module, or of one around it, fills.

    Attributes:
        name: the parameter's.
        around: the modules that may fill it, outer ones first, as copies without memory for their parameters.
        otherwise: what fills it where none of them does.
    """

    name: str
    around: Mapping[str, nn.Module]
    otherwise: Fill | Reset | None

    def draw(self, seed: int) -> Tensor | None:
        """The whole tensor, or None where no module fills it.

        Parameters of one module are drawn from one stream, in which they may depend on one another.
        """
        owner, _, own = self.name.rpartition(".")
        for prefix, module in self.around.items():
            inside = owner.removeprefix(prefix).removeprefix(".")
            with _memory_for(module, inside) as parameters, torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(_seed_of(seed, owner))
                try:
                    _own_reset(module)(module)  # type: ignore[misc]
                except (RuntimeError, NotImplementedError) as error:  # such as one that reads what has no memory here
                    raise _no_start(self.name, f" ('{prefix}' fails in it: {error})") from None
                found = parameters[own].detach()
            if not torch.isnan(found).any():
                return found
        return None


def _without_memory(module: nn.Module) -> nn.Module:
    blank = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict(blank))


@contextmanager
def _memory_for(module: nn.Module, owner: str) -> Iterator[dict[str, Tensor]]:
    """Inside, the parameters of the submodule `owner` are real, NaN in them, wherever they are used."""
    before = [child._parameters.copy() for child in module.modules()]
    own = {name: p for name, p in module.get_submodule(owner)._parameters.items() if p is not None}
    real = {p: nn.Parameter(torch.full(p.shape, torch.nan), p.requires_grad) for p in own.values()}
    for child in module.modules():
        child._parameters.update({n: real.get(p, p) for n, p in child._parameters.items() if p is not None})
    try:
        yield {name: real[p] for name, p in own.items()}
    finally:
        for child, parameters in zip(module.modules(), before, strict=True):
            child._parameters.update(parameters)


def _no_start(name: str, why: str = "") -> UserError:
    module, _, own = name.rpartition(".")
    return UserError(
        f"nothing says how the model's parameter '{name}' starts{why}: give the class of '{module or 'the model'}' a method "
        f"initialisers() that returns {{'{own}': mres.model.initial.normal(0.02)}} (or uniform, constant), or a "
        "reset_parameters() that fills it alone"
    )


def _drawn(seed: int, name: str, shape: torch.Size, fill: Fill | Reset | None) -> Tensor:
    if isinstance(fill, Reset):
        found = fill.draw(seed)
        return _drawn(seed, name, shape, fill.otherwise) if found is None else found
    if fill is None:
        raise _no_start(name)
    tensor = torch.full(shape, torch.nan)
    fill(tensor, torch.Generator().manual_seed(_seed_of(seed, name)))
    return tensor


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest(), "little")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
