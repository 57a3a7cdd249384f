"""What is done to a model's blocks before they are sharded, for every strategy and in one order.

Activation checkpointing, then torch.compile, then (in the strategy) sharding: the compiler must see what is recomputed,
and the hooks that gather a block's weights must stay outside of both. Only `forward` of a block is replaced, so modules,
parameters and their names stay what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mres.parallel.config import ParallelConfig

# What is dear to compute: products, convolutions and attention. All else of a block (norms, activations, sums) is cheap.
_SAVED_OPS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::convolution",
    "aten::_scaled_dot_product_",
)

# Dropout draws what it draws without the compiler, so that losses stay the same.
_COMPILER: dict[str, Any] = {"fallback_random": True}


def prepare_blocks(blocks: Sequence[nn.Module], config: ParallelConfig) -> None:
    """Makes each block recompute its activations in backward and compiles it, as `config` asks."""
    for block in blocks:
        if config.activation_checkpointing != "none":
            _recompute(block, selective=config.activation_checkpointing == "selective")
        if config.compile:
            block.forward = torch.compile(block.forward, options=_COMPILER)
    if config.compile and config.activation_checkpointing == "selective":
        # It asks that nothing that is kept be written in place. Without the compiler that would be an error, and it is none.
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "does not contain in-place ops" not in record.getMessage()


def _recompute(block: nn.Module, *, selective: bool) -> None:
    """Dropout draws the same again: the state of the random numbers is kept (`preserve_rng_state`, on by default)."""
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _save_or_recompute)
    block.forward = partial(checkpoint, block.forward, **options)


def _save_or_recompute(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation.name().startswith(_SAVED_OPS) else CheckpointPolicy.PREFER_RECOMPUTE
