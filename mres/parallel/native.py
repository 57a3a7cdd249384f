"""Strategies that step a torch optimizer: the shared part, `single` and `ddp`."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mres.dcp.local_shards import LocalShard, assign_owners
from mres.dcp.staging import read_shards, refuse_strangers
from mres.model.buffers import named_tensors
from mres.parallel.batch_norm import synchronise_batch_norms
from mres.parallel.blocks import prepare_blocks
from mres.parallel.ema import holds_average
from mres.parallel.materialise import align_replicas, materialise, write
from mres.parallel.precision import CastParameters, cast_inputs, keep_in
from mres.parallel.strategy import AdamW, ParameterGroup, StepFilter, Strategy


def build_optimizer(model: nn.Module, groups: Sequence[ParameterGroup], adamw: AdamW) -> torch.optim.AdamW:
    """The one optimizer of every strategy, over the model's parameters by name."""
    named = dict(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [named[n] for n in g.names], "weight_decay": g.weight_decay, "lr_scale": g.lr_scale}
            for g in groups
        ],
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

    _optimizer: torch.optim.AdamW
    _adamw: AdamW

    @abstractmethod
    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """Returns what forward is called on; the parameters of `model` are the ones to optimise from then on."""

    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        keep_in(model, self.precision.master)
        synchronise_batch_norms(model, self.world.size)
        prepare_blocks(blocks, self.config)
        self.module, self.model, self._adamw = self._spread(model, blocks), model, adamw
        self._optimizer = build_optimizer(model, groups, adamw)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        named = named_tensors(self.model)
        for name, whole in weights:
            write(named[name], whole)
        if self.world.size > 1:
            align_replicas(named.values())

    def weight_shares(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, parameter.to_local() if isinstance(parameter, DTensor) else parameter

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float, step_filter: StepFilter | None = None) -> Tensor:
        norm = self._gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self._adamw.max_grad_norm, norm)
        may_move = torch.isfinite(norm)
        if step_filter is not None:
            may_move = may_move & step_filter(norm)
        # The fused kernel reads this flag where the weights are, and leaves them, moments and step count alone at 1.
        home = self._optimizer.param_groups[0]["params"][0].device
        self._optimizer.found_inf = (~may_move).float().to(home)  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _gradient_norm(self) -> Tensor:
        """Of all ranks' gradients, with squares summed in float64: however they are sharded, it is the same to the bit."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        square = torch.stack(torch._foreach_norm(local, 2, torch.float64)).square().sum().to(self.world.device)
        return self._sum_of_shards(square).sqrt().to(self.precision.master)

    def _sum_of_shards(self, value: Tensor) -> Tensor:
        """`value` added up over the ranks that share one copy of the model."""
        return value

    def masters(self) -> Sequence[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def local_shards(self) -> dict[str, LocalShard]:
        state = self._state(optimizer=True, average=self.average is not None)
        rank, num_writers = self.world.rank, self._ranks_of_a_copy()
        owners = assign_owners({n: t.shape for n, t in state.items() if not isinstance(t, DTensor)}, num_writers)
        # Of shards, every rank of the first copy of the model writes its own.
        return {n: LocalShard.of(t) for n, t in state.items() if rank < num_writers and owners.get(n, rank) == rank}

    def _ranks_of_a_copy(self) -> int:
        """How many ranks, from the first on, have everything between them, none of it twice but plain tensors."""
        return self.world.size

    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        average = self.average is not None and optimizer and holds_average(folder)
        moving = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        refuse_strangers(folder, named_tensors(self.model), moving if optimizer else None)
        state = self._state(optimizer=optimizer, average=average)
        read_shards({name: LocalShard.of(tensor) for name, tensor in state.items()}, folder, self._cpu_group)
        if self.average is not None and not average:
            self.average.restart()

    def _state(self, *, optimizer: bool, average: bool) -> dict[str, Tensor]:
        """The live tensors by their neutral names."""
        state = {f"model.{name}": tensor for name, tensor in named_tensors(self.model).items()}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            if optimizer:
                moments = self._optimizer.state[parameter] or blank_moments(parameter)
                self._optimizer.state[parameter] = moments
                state.update({f"optim.{name}.{key}": value for key, value in moments.items()})
            if average:
                assert self.average is not None
                state[f"ema.{name}"] = self.average.of[parameter]
        return state


class SingleStrategy(NativeStrategy):
    """One process, nothing spread."""

    _cast_parameters: CastParameters | None = None

    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        materialise(model, self.world.device)
        if self.precision.compute != self.precision.master:
            self._cast_parameters = CastParameters(model, self.precision.compute)
        if self.precision.compute != torch.float32:  # what inputs are
            model.register_forward_pre_hook(cast_inputs(self.precision.compute))
        return model

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self._cast_parameters is not None:
            self._cast_parameters.restore_masters()


class DdpStrategy(SingleStrategy):
    """Every rank holds the whole model; gradients are averaged while backward runs."""

    def _spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        model = super()._spread(model, blocks)
        device_ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        # Buffers are the same on every rank: broadcasting them would cost a collective a step. What replaces the option
        # came after torch 2.6, the oldest that will do.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        # Of 1×1 convolutions in bfloat16: only the strides of dimensions that have one element differ.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.module, nn.parallel.DistributedDataParallel)
        return nullcontext() if last else self.module.no_sync()
