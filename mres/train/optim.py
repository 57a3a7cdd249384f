"""Parameter groups and the learning-rate schedule."""

import math

from torch import nn

from mres.parallel.strategy import ParameterGroup
from mres.train.config import OptimConfig

# Parameters that are positions, tokens or embeddings: pulling them towards zero removes information, not complexity.
_NO_DECAY_NAMES = ("pos_embed", "positional_embedding", "token_embedding", "cls_token", "low_group", "high_group")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Matrices and kernels decay; biases, norms (one dimension), embeddings and tokens do not. Made before wrapping."""
    decay: list[str] = []
    rest: list[str] = []
    for name, parameter in model.named_parameters():
        keep = parameter.ndim < 2 or any(part in name for part in _NO_DECAY_NAMES)
        (rest if keep else decay).append(name)
    return [ParameterGroup(tuple(decay), weight_decay), ParameterGroup(tuple(rest), 0.0)]


def describe_groups(model: nn.Module, groups: list[ParameterGroup]) -> list[str]:
    """A line a group for the log: what decays and how much of the model it is."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [
        f"optimizer group: weight decay {g.weight_decay:g}, {len(g.names)} tensors, "
        f"{sum(sizes[n] for n in g.names):,} parameters (such as {', '.join(g.names[:2])})"
        for g in groups
    ]


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up to `lr`, then a cosine to `min_lr` at `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
