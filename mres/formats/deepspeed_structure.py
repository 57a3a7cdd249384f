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

Cuts = Sequence[Sequence[Cut]]  # of each group, its flat tensors


@dataclass(frozen=True, slots=True)
class State:
    """A rank's part of a flat tensor: the float32 weights, and what AdamW keeps of them."""

    master: Written
    optimizer: dict[str, Written]


def optim_structure(layout: Layout, cuts: Cuts, stage: int, rank: int, states: Sequence[State]) -> dict[str, Any]:
    """Of a rank's …_optim_states.pt; `states` of its flat tensors, in their order."""
    state = _sharded(layout, cuts, states) if stage == 3 else _flat(layout, cuts, stage, rank, states)
    return {
        "optimizer_state_dict": {**state, "dynamic_loss_scale": False, "overflow": False, "ds_version": _VERSION},
        "ds_config": _config(layout, stage),
        "ds_version": _VERSION,
    }


def _base(layout: Layout, cuts: Cuts, states: Sequence[State]) -> dict[str, Any]:
    """As torch's optimizer has it: flat tensors are numbered through all groups."""
    groups, number = [], 0
    for group, of_group in zip(layout.groups, cuts, strict=True):
        groups.append({**group.options, "params": list(range(number, number + len(of_group)))})
        number += len(of_group)
    kept = {number: state.optimizer for number, state in enumerate(states) if state.optimizer}
    return {"state": kept, "param_groups": groups}


def _sharded(layout: Layout, cuts: Cuts, states: Sequence[State]) -> dict[str, Any]:
    scaler = Made("deepspeed.runtime.fp16.loss_scaler.LossScaler", (1.0,), {"cur_scale": 1.0, "dynamic": False})
    return {
        "zero_stage": 3,
        "loss_scaler": scaler,
        "partition_count": len(cuts[0][0].sizes),
        "optimizer_state_dict": _base(layout, cuts, states),
        "fp32_flat_groups": [state.master for state in states],
    }


def _flat(layout: Layout, cuts: Cuts, stage: int, rank: int, states: Sequence[State]) -> dict[str, Any]:
    of_groups = [cut for (cut,) in cuts]
    return {
        "zero_stage": stage,
        "base_optimizer_state": _base(layout, cuts, states),
        "single_partition_of_fp32_groups": [state.master for state in states],
        "group_paddings": [cut.sizes[rank] - cut.filled[rank] for cut in of_groups],
        "param_alignment_paddings": [[0] * len(cut.names) for cut in of_groups],
        "partition_count": [len(cut.sizes) for cut in of_groups],
        "param_slice_mappings": [_slices(cut, rank) for cut in of_groups],
    }


def _slices(cut: Cut, rank: int) -> OrderedDict[str, Made]:
    """Where the rank's pieces lie; DeepSpeed's conversion to its universal form reads it."""
    pieces = [(name, p) for name in cut.names for p in cut.fragments(name) if p.rank == rank]
    address = "deepspeed.utils.tensor_fragment.fragment_address"
    return OrderedDict((name, Made(address, (p.stop - p.start, p.offset))) for name, p in pieces)


def model_structure(
    layout: Layout,
    cuts: Cuts,
    stage: int,
    shapes: Mapping[str, tuple[int, ...]],
    module: Mapping[str, Written],
    frozen: Mapping[str, Written],
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    """Of …_model_states.pt; `module` by the model's names, in their order; `aliases`: other names of tied parameters."""

    def shapes_of(names: Sequence[str]) -> OrderedDict[str, Made]:
        return OrderedDict((name, Made("torch.Size", (shapes[name],))) for name in names)

    return {
        "module": OrderedDict({**module, **{alias: module[name] for alias, name in aliases.items()}}),
        "buffer_names": list(layout.buffers),
        "optimizer": None,
        "param_shapes": [shapes_of(cut.names) for of_group in cuts for cut in of_group],
        "frozen_param_shapes": shapes_of(layout.frozen),
        "shared_params": dict(aliases),
        "frozen_param_fragments": OrderedDict(frozen),
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        **layout.counts,
        "dp_world_size": len(cuts[0][0].sizes),
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": _config(layout, stage),
        "ds_version": _VERSION,
    }


def _config(layout: Layout, stage: int) -> dict[str, Any]:
    return {"bf16": {"enabled": layout.compute == "bfloat16"}, "zero_optimization": {"stage": stage}}
