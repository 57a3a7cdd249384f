"""What is a function of the step alone: the learning rate and the weight of the moving average. No torch here."""

import math

from mres.train.config import OptimConfig

_WARMUP_STEPS = 1000


def warmup_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Steps of the warm-up, whichever way it is given."""
    if config.warmup_epochs is not None:
        return round(config.warmup_epochs * steps_per_epoch)
    return _WARMUP_STEPS if config.warmup_steps is None else config.warmup_steps


def learning_rate(step: int, total_steps: int, config: OptimConfig, steps_per_epoch: int) -> float:
    """The rate of step `step` (from 0): linear warm-up to `lr`, then a cosine to `min_lr` at `total_steps`."""
    warmup = warmup_steps(config, steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def average_weight(step: int, config: OptimConfig) -> float:
    """How far the moving average goes towards the weights after step `step` (from 0); 0: not at all.

    The decay rises from 0.1 as (1 + n) / (10 + n): a young average must forget the weights that training began with.
    With `ema_every` above 1, one update stands for as many steps.
    """
    if config.ema_decay is None or (step + 1) % config.ema_every:
        return 0.0
    decay = min(config.ema_decay, (1 + step) / (10 + step))
    return 1 - decay**config.ema_every
