"""What is done to a model's blocks before they are sharded, for every strategy and in one order.

Activation checkpointing, then torch.compile, then (in the strategy) sharding: the compiler must see what is recomputed,
and the hooks that gather a block's weights must stay outside of both. Only `forward` of a block is replaced, so modules,
parameters and their names stay what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mres.errors import UserError
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
    """Makes each block recompute its activations in backward and compiles it, as `config` asks.

    Raises:
        UserError: both, of a block with buffers.
    """
    for block in blocks:
        if config.activation_checkpointing != "none":
            if config.compile and next(block.buffers(), None) is not None:
                raise UserError(
                    f"parallel.compile with activation_checkpointing={config.activation_checkpointing} is not for blocks with "
                    f"buffers ({type(block).__name__} has some), which the second pass would change again; drop one"
                )
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
    if next(block.buffers(), None) is not None:
        options["context_fn"] = partial(_contexts, block, selective)
    elif selective:
        options["context_fn"] = _selective
    block.forward = partial(checkpoint, block.forward, **options)


def _selective() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return create_selective_checkpoint_contexts(_save_or_recompute)


def _contexts(block: nn.Module, selective: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    forward, again = _selective() if selective else (nullcontext(), nullcontext())
    found = [{n: None if b is None else b.clone() for n, b in m._buffers.items()} for m in block.modules()]
    return forward, _on_buffers(block, found, again)


@contextmanager
def _on_buffers(
    block: nn.Module, found: list[dict[str, Tensor | None]], inner: AbstractContextManager[Any]
) -> Iterator[None]:
    """The second pass sees the buffers that the first one found, and does not count or average in the model's own."""
    own = [module._buffers.copy() for module in block.modules()]
    for module, buffers in zip(block.modules(), found, strict=True):
        module._buffers.update(buffers)
    try:
        with inner:
            yield
    finally:
        for module, buffers in zip(block.modules(), own, strict=True):
            module._buffers.update(buffers)


def _save_or_recompute(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation.name().startswith(_SAVED_OPS) else CheckpointPolicy.PREFER_RECOMPUTE
