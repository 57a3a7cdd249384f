"""Strategies that step a torch optimizer: the shared part, `single` and `ddp`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mres.parallel.strategy import AdamW, ParameterGroup, Strategy


def build_optimizer(model: nn.Module, groups: Sequence[ParameterGroup], adamw: AdamW) -> torch.optim.AdamW:
    """The one optimizer of every strategy, over the model's parameters by name."""
    named = dict(model.named_parameters())
    return torch.optim.AdamW(
        [{"params": [named[n] for n in g.names], "weight_decay": g.weight_decay} for g in groups],
        betas=adamw.betas,
        eps=adamw.eps,
        fused=True,
    )


def blank_moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step, so that there is something to load into."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format).detach(),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format).detach(),
    }


class NativeStrategy(Strategy):
    """A torch AdamW over plain or DTensor parameters."""

    _model: nn.Module
    _optimizer: torch.optim.AdamW
    _adamw: AdamW

    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """Returns what forward is called on; the parameters of `model` are the ones to optimise from then on."""
        return model

    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        model.to(self.world.device)
        self.module, self._model, self._adamw = self._spread(model, blocks), model, adamw
        self._optimizer = build_optimizer(model, groups, adamw)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(self._reduce(last))
        if self.config.compute_dtype == "bfloat16" and not isinstance(next(self._model.parameters()), DTensor):
            stack.enter_context(torch.autocast(self.world.device.type, torch.bfloat16))
        return stack

    def _reduce(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> Tensor:
        norm = self._gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(self._model.parameters(), self._adamw.max_grad_norm, norm)
        # The fused kernel reads this flag on the device and leaves weights, moments and step count alone where it is 1.
        self._optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _gradient_norm(self) -> Tensor:
        """Of all ranks' gradients, with squares summed in float64: however they are sharded, it is the same to the bit."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        square = torch.stack(torch._foreach_norm(local, 2, torch.float64)).square().sum()
        if isinstance(gradients[0], DTensor):
            self.sum(square)
        return square.sqrt().float()

    def save_state(self, folder: Path) -> None:
        dcp.save(self._state(optimizer=True), checkpoint_id=folder, process_group=self._cpu_group)

    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        dcp.load(self._state(optimizer=optimizer), checkpoint_id=folder, process_group=self._cpu_group)

    def _state(self, *, optimizer: bool) -> dict[str, Tensor]:
        """The live tensors by their neutral names; DCP writes them from, and reads them into, their own memory."""
        state: dict[str, Tensor] = {}
        for name, parameter in self._model.named_parameters():
            state[f"model.{name}"] = parameter.detach()
            if optimizer:
                moments = self._optimizer.state[parameter] or blank_moments(parameter)
                self._optimizer.state[parameter] = moments
                state.update({f"optim.{name}.{key}": value for key, value in moments.items()})
        return state


class SingleStrategy(NativeStrategy):
    """One process, nothing spread."""


class DdpStrategy(NativeStrategy):
    """Every rank holds the whole model; gradients are averaged while backward runs."""

    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        device_ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        # No buffer of the model ever changes: broadcasting them would cost a collective a step. What replaces the option
        # came after torch 2.6, the oldest that will do.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def _reduce(self, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.module, nn.parallel.DistributedDataParallel)
        return nullcontext() if last else self.module.no_sync()
