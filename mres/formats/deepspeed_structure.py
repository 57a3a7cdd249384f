"""What stands around the tensors in the files of a DeepSpeed ZeRO checkpoint (0.19.8)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mres.formats.deepspeed_cut import Cut
from mres.formats.deepspeed_layout import Layout
from mres.formats.pickling import Made
from mres.formats.torch_archive_writer import Written

_VERSION = "0.19.8"


@dataclass(frozen=True, slots=True)
class State:
    """A rank's part of a flat tensor: the float32 weights, and what AdamW keeps of them."""

    master: Written
    optimizer: dict[str, Written]


class OptimFile:
    """…_optim_states.pt of one rank; `add` takes flat tensors in their order."""

    def __init__(self, layout: Layout, cuts: Sequence[Sequence[Cut]], stage: int, rank: int) -> None:
        self._layout, self._cuts, self._stage, self._rank = layout, cuts, stage, rank
        self._states: list[State] = []

    def add(self, state: State) -> None:
        self._states.append(state)

    def build(self) -> dict[str, Any]:
        state = self._sharded() if self._stage == 3 else self._flat()
        return {
            "optimizer_state_dict": {**state, "dynamic_loss_scale": False, "overflow": False, "ds_version": _VERSION},
            "ds_config": _config(self._layout, self._stage),
            "ds_version": _VERSION,
        }

    def _base(self) -> dict[str, Any]:
        """As torch's optimizer has it: flat tensors are numbered through all groups."""
        groups, number = [], 0
        for group, cuts in zip(self._layout.groups, self._cuts, strict=True):
            groups.append({**group.options, "params": list(range(number, number + len(cuts)))})
            number += len(cuts)
        return {
            "state": {number: state.optimizer for number, state in enumerate(self._states) if state.optimizer},
            "param_groups": groups,
        }

    def _sharded(self) -> dict[str, Any]:
        scaler = Made("deepspeed.runtime.fp16.loss_scaler.LossScaler", (1.0,), {"cur_scale": 1.0, "dynamic": False})
        return {
            "zero_stage": 3,
            "loss_scaler": scaler,
            "partition_count": len(self._cuts[0][0].sizes),
            "optimizer_state_dict": self._base(),
            "fp32_flat_groups": [state.master for state in self._states],
        }

    def _flat(self) -> dict[str, Any]:
        cuts = [cut for (cut,) in self._cuts]
        return {
            "zero_stage": self._stage,
            "base_optimizer_state": self._base(),
            "single_partition_of_fp32_groups": [state.master for state in self._states],
            "group_paddings": [cut.sizes[self._rank] - cut.filled[self._rank] for cut in cuts],
            "param_alignment_paddings": [[0] * len(cut.names) for cut in cuts],
            "partition_count": [len(cut.sizes) for cut in cuts],
            "param_slice_mappings": [self._slices(cut) for cut in cuts],
        }

    def _slices(self, cut: Cut) -> OrderedDict[str, Made]:
        """Where this rank's pieces lie; DeepSpeed's conversion to its universal form reads it."""
        pieces = [(name, p) for name in cut.names for p in cut.fragments(name) if p.rank == self._rank]
        address = "deepspeed.utils.tensor_fragment.fragment_address"
        return OrderedDict((name, Made(address, (p.stop - p.start, p.offset))) for name, p in pieces)


class ModelFile:
    """…_model_states.pt; `module` and `frozen` are filled before it is built."""

    def __init__(
        self, layout: Layout, cuts: Sequence[Sequence[Cut]], stage: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._layout, self._cuts, self._stage, self._shapes = layout, cuts, stage, shapes
        self.module: dict[str, Written] = {}
        self.frozen: dict[str, Written] = {}

    def build(self, names: Sequence[str], aliases: Mapping[str, str]) -> dict[str, Any]:
        """`names`: the model's, in their order; `aliases`: other names of tied parameters."""
        module = {name: self.module[name] for name in names}
        return {
            "module": OrderedDict(module | {alias: module[name] for alias, name in aliases.items()}),
            "buffer_names": list(self._layout.buffers),
            "optimizer": None,
            "param_shapes": [self._shapes_of(cut.names) for cuts in self._cuts for cut in cuts],
            "frozen_param_shapes": self._shapes_of(self._layout.frozen),
            "shared_params": dict(aliases),
            "frozen_param_fragments": OrderedDict(self.frozen),
            "lr_scheduler": None,
            "data_sampler": None,
            "random_ltd": None,
            **self._layout.counts,
            "dp_world_size": len(self._cuts[0][0].sizes),
            "mp_world_size": 1,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            "ds_config": _config(self._layout, self._stage),
            "ds_version": _VERSION,
        }

    def _shapes_of(self, names: Sequence[str]) -> OrderedDict[str, Made]:
        return OrderedDict((name, Made("torch.Size", (self._shapes[name],))) for name in names)


def _config(layout: Layout, stage: int) -> dict[str, Any]:
    return {"bf16": {"enabled": layout.compute == "bfloat16"}, "zero_optimization": {"stage": stage}}
