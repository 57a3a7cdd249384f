"""What the optimizer moves, and how much of it: frozen parameters, learning rates by place, weight decay by name and shape.

All of it is decided by plain names before a strategy wraps the model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from mres.errors import UserError, near
from mres.model.spec import Encoder, ModelSpec
from mres.parallel.strategy import ParameterGroup
from mres.train.config import OptimConfig


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Takes the gradient from the parameters whose names begin with one of `prefixes` (up to a dot, or whole).

    Raises:
        UserError: a prefix of no parameter, or nothing that is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(_begins(name, prefix) for name in names):
            raise UserError(f"optim.freeze: no parameter's name begins with '{prefix}'; {_near(prefix, names)}")
    for name, parameter in model.named_parameters():
        if any(_begins(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"optim.freeze={list(prefixes)} freezes the whole model; leave something to train")


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _near(prefix: str, names: Sequence[str]) -> str:
    """The known prefix that was probably meant."""
    known = {name[: dot.start()] for name in names for dot in re.finditer(r"\.|$", name)}
    tops = sorted({name.split(".")[0] for name in names})
    return near(prefix, sorted(known), otherwise=f"the model has {', '.join(tops)}")


def lr_scales(model: nn.Module, config: OptimConfig, spec: ModelSpec) -> dict[str, float]:
    """By how much the learning rate of each trainable parameter differs from `optim.lr`.

    An encoder's parameters have its `…_lr_scale`, times `layer_decay` for every block of it that lies above them: its last
    block has the full rate, as has what lies neither in a block nor below the first.

    Raises:
        UserError: a scale for an encoder that is not there or frozen, or a decay where that is so of both: no effect.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = dict.fromkeys(trainable, 1.0)
    found = 0
    for key, scale, encoder in (
        ("image_lr_scale", config.image_lr_scale, spec.image_encoder),
        ("text_lr_scale", config.text_lr_scale, spec.text_encoder),
    ):
        own = [] if encoder is None else [name for name in trainable if _begins(name, encoder.prefix)]
        if scale != 1 and not own:
            raise UserError(f"optim.{key}={scale:g} has no effect: {_why_not(encoder, key, spec)}; drop one")
        if encoder is not None:
            scales |= {name: scale * config.layer_decay**above for name, above in _blocks_above(model, encoder, own)}
        found += len(own)
    if config.layer_decay != 1 and not found:
        reasons = (_why_not(spec.image_encoder, "image", spec), _why_not(spec.text_encoder, "text", spec))
        raise UserError(f"optim.layer_decay={config.layer_decay:g} has no effect: {' and '.join(reasons)}")
    return scales


def _why_not(encoder: Encoder | None, key: str, spec: ModelSpec) -> str:
    """Why a rate for an encoder would move nothing."""
    if encoder is None:
        return f"{spec.name} has no {key.split('_')[0]} encoder"
    return f"optim.freeze freezes all of '{encoder.prefix}'"


def _blocks_above(model: nn.Module, encoder: Encoder, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """How many blocks of the encoder lie between each parameter and the encoder's top."""
    numbers = {n: i for i, n in enumerate(model.get_submodule(encoder.blocks)._modules)} if encoder.blocks else {}
    depth = len(numbers)
    for name in names:
        if encoder.blocks and _begins(name, encoder.blocks):
            block = name.removeprefix(encoder.blocks + ".").split(".")[0]
            yield name, depth - 1 - numbers[block] if block in numbers else depth
        else:
            yield name, depth if any(_begins(name, part) for part in encoder.below) else 0


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
    *,
    no_decay: Sequence[str] = (),
) -> list[ParameterGroup]:
    """The trainable parameters, those that are treated alike in one group. Made before wrapping.

    Matrices and kernels decay; biases and norms (one dimension) do not.

    Args:
        scales: of the learning rate, by name; default: 1.
        no_decay: parts of the names of what does not decay either, such as embeddings.
    """
    groups: dict[tuple[float, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            keep = parameter.ndim < 2 or any(part in name for part in no_decay)
            key = (0.0 if keep else weight_decay, 1.0 if scales is None else scales[name])
            groups.setdefault(key, []).append(name)
    # What decays first, then by learning rate: an order that does not depend on which parameter the model names first.
    return [ParameterGroup(tuple(groups[key]), *key) for key in sorted(groups, reverse=True)]


def describe_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> list[str]:
    """A table for the log: the groups, what is frozen, and which parameters do not decay."""
    named = dict(model.named_parameters())
    rows = [(f"{g.lr_scale:.4g} x lr", f"{g.weight_decay:g}", g.names) for g in groups]
    frozen = tuple(name for name, parameter in named.items() if not parameter.requires_grad)
    lines = ["  learning rate   weight decay   tensors      parameters  such as"]
    for rate, decay, names in [*rows, ("frozen", "-", frozen)]:
        if names:
            number = sum(named[name].numel() for name in names)
            lines.append(f"{rate:>15}{decay:>15}{len(names):>10}{number:>16,}  {', '.join(names[:2])}")
    kept = [name for g in groups if not g.weight_decay for name in g.names]
    flat = sum(named[name].ndim < 2 for name in kept)
    by_name = [name for name in kept if named[name].ndim >= 2]
    return [*lines, f"no weight decay: {flat} biases, norms and other vectors; {', '.join(by_name) or 'nothing else'}"]
