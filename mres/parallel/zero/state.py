"""State in and out of a running DeepSpeed ZeRO optimizer (0.19), parameter by parameter.

Every stage keeps float32 masters and AdamW moments in flat tensors, of which each rank has a part. This file knows
where the shards of a parameter lie in them; DeepSpeed's own setters fail where a size does not divide by the number of
ranks (stage 3), do not reach all groups before the first step (1 and 2), and leave what the forward pass reads as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mres.dcp.local_shards import LocalShard
from mres.errors import UserError
from mres.parallel.ema import Average
from mres.parallel.native import blank_moments
from mres.parallel.strategy import ParameterGroup
from mres.parallel.zero.frozen import Frozen
from mres.supervise.world import World


@dataclass(frozen=True, slots=True)
class _Range:
    """This rank's shard of a parameter: its elements start … start+numel lie at `offset` of the flat master `flat`."""

    flat: Tensor
    offset: int
    start: int
    numel: int


class Partition:
    """The masters, moments and averages of one rank; `key` is "param", "exp_avg", "exp_avg_sq" or "ema".

    Attributes:
        shapes: of every parameter, whole.
        frozen: those that are not partitioned, as no optimizer moves them.
        moving: names of all others.
    """

    average: Average | None = None

    def __init__(
        self,
        optimizer: Any,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        shapes: Mapping[str, torch.Size],
        frozen: Frozen,
        world: World,
    ) -> None:
        self._optimizer, self.shapes, self.frozen, self._world = optimizer, shapes, frozen, world
        self.moving = tuple(name for name in shapes if name not in frozen.parameters)
        self._sharded_weights = hasattr(optimizer, "fp32_partitioned_groups_flat")
        self._shares = self._find_shares(dict(model.named_parameters()), groups)
        for share in self._shares.values():
            state = optimizer.optimizer.state
            state[share.flat] = state[share.flat] or blank_moments(share.flat)

    def _find_shares(self, named: Mapping[str, nn.Parameter], groups: Sequence[ParameterGroup]) -> dict[str, _Range]:
        named = {name: named[name] for name in self.moving}
        if self._sharded_weights:
            return {name: self._stage_3_share(name, parameter) for name, parameter in named.items()}
        # A flat master a group; DeepSpeed drops groups that are empty.
        flats = [group["params"][0] for group in self._optimizer.param_groups]
        filled = [group for group in groups if group.names]
        shares = {
            name: self._flat_share(named[name], flat)
            for group, flat in zip(filled, flats, strict=True)
            for name in group.names
        }
        return {name: shares[name] for name in named}

    def _stage_3_share(self, name: str, parameter: nn.Parameter) -> _Range:
        """Stage 3 cuts every parameter into as many equal shards as there are ranks; the last ones are padded."""
        group, offset, padded = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        start = min(self._world.rank * padded, self.shapes[name].numel())
        numel = min(padded, self.shapes[name].numel() - start)
        return _Range(self._optimizer.fp32_partitioned_groups_flat[group], offset, start, numel)

    @staticmethod
    def _flat_share(parameter: nn.Parameter, flat: Tensor) -> _Range:
        """Stages 1 and 2 cut the concatenation of a group's parameters; a rank may have nothing of a parameter."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return _Range(flat, 0, 0, 0)
        inside, outside = mapping.hp_fragment_address, mapping.lp_fragment_address
        return _Range(flat, inside.start, outside.start, inside.numel)

    def keys(self) -> tuple[str, ...]:
        """What there is of a parameter that moves."""
        return ("param", "exp_avg", "exp_avg_sq", *(("ema",) if self.average is not None else ()))

    def masters(self) -> list[Tensor]:
        """The flat tensors that this rank's optimizer moves."""
        return list(dict.fromkeys(share.flat for share in self._shares.values()))

    def shard(self, name: str, key: str) -> LocalShard:
        """This rank's range of a parameter that moves, in its own memory."""
        return LocalShard.of_range(self.shapes[name], self._shares[name].start, self._flat_shard(name, key))

    def _flat_shard(self, name: str, key: str) -> Tensor:
        share = self._shares[name]
        flat = share.flat
        if key == "ema":
            assert self.average is not None
            flat = self.average.of[flat]
        elif key != "param":
            flat = self._optimizer.optimizer.state[flat][key]
        return flat.detach().narrow(0, share.offset, share.numel)

    def weight_shares(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's shards of the masters."""
        yield from ((name, self._flat_shard(name, "param")) for name in self._shares)
        yield from self.frozen.exact.items()

    def step_of(self, name: str) -> Tensor:
        """AdamW's step count of a parameter, a float32 scalar on the host."""
        return self._optimizer.optimizer.state[self._shares[name].flat]["step"].detach().clone().cpu()

    def write(self, name: str, whole: Tensor) -> None:
        """Takes this rank's shard of the whole weight; `sync_params` makes it what the forward pass reads."""
        if name in self.frozen.parameters:
            self.frozen.write(name, whole)
            return
        share = self._shares[name]
        self._flat_shard(name, "param").copy_(whole.flatten().narrow(0, share.start, share.numel))

    def write_steps(self, steps: Mapping[str, Tensor]) -> None:
        """Sets the step counts, of which a flat tensor has only one.

        Raises:
            UserError: the parameters of a group were not stepped equally often.
        """
        by_flat: dict[int, str] = {}
        for name, step in steps.items():
            flat = self._shares[name].flat
            first = by_flat.setdefault(id(flat), name)
            if step != steps[first]:
                raise UserError(
                    f"the checkpoint's optimizer counts {float(steps[first]):.0f} steps for '{first}' and {float(step):.0f} for "
                    f"'{name}'; parallel.strategy=zero keeps one count for both, go on with the strategy that wrote it"
                )
            self._optimizer.optimizer.state[flat]["step"].copy_(step)

    def sync_params(self) -> None:
        """Rounds the masters into the weights of the forward pass; called by all ranks together."""
        optimizer = self._optimizer
        if not self._sharded_weights:
            optimizer.update_lp_params()
            return
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def drop_second_copy(optimizer: Any) -> None:
    """Stage 3 computing in float32: this rank's masters are its weights, not a copy of them.

    So DeepSpeed means it as well, but it compares a device with a name, which are never equal (0.19).
    """
    for master, weights in zip(
        optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True
    ):
        if (master.dtype, master.device) == (weights.dtype, weights.device):
            master.data = weights


def chunked(shapes: Mapping[str, torch.Size], num_bytes: int) -> Iterator[list[str]]:
    """The parameters in their order, in chunks of at most `num_bytes` of float32, or of one parameter that is larger."""
    chunk: list[str] = []
    used = 0
    for name, shape in shapes.items():
        size = 4 * shape.numel()
        if chunk and used + size > num_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk
