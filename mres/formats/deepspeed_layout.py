"""What a DeepSpeed folder says of a model beside its tensors: the optimizer's groups, what is frozen, what is a buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mres.formats.casting import CASTABLE
from mres.formats.folder import CONFIG, CheckpointError
from mres.formats.tensors import MODEL, OPTIM, TensorSource
from mres.io.yaml_files import parse_yaml

MOMENTS = ("exp_avg", "exp_avg_sq")
_KEPT = (*MOMENTS, "step")
# What torch's AdamW keeps of a group beside what a run sets; mres runs the fused kernel.
_ADAMW = {
    "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "maximize": False,
    "foreach": None, "capturable": False, "differentiable": False, "fused": True, "decoupled_weight_decay": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that an optimizer treats alike, in its order; `options` is all that its group holds beside them."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """All names are plain; a parameter without elements counts as frozen, as DeepSpeed has it.

    Attributes:
        compute: what forward computes in, bfloat16 or float32.
        counts: global_steps, skipped_steps and global_samples.
        notes: what had to be assumed.
    """

    groups: tuple[ParamGroup, ...]
    frozen: tuple[str, ...]
    buffers: tuple[str, ...]
    compute: str
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)


def layout_of(source: TensorSource) -> Layout:
    """As mres's engine has it, by state.json and config.yaml; without them, one group of all that can be trained.

    Raises:
        CheckpointError: the groups name other parameters than the tensors do.
    """
    state = source.state or {}
    config = parse_yaml(source.config_yaml, CONFIG) if source.config_yaml else {}
    names = [name.removeprefix(MODEL) for name in source.specs if name.startswith(MODEL)]
    _check_types(source)
    trained = _trained(source, names)
    if not trained:
        raise CheckpointError(
            "there is no weight of floats that an optimizer could move: nothing for DeepSpeed's format"
        )
    notes: list[str] = []
    if "groups" in state:
        groups = _groups(state["groups"], trained, config.get("optim", {}))
    else:
        groups = (ParamGroup(tuple(trained), _options(config.get("optim", {}))),)
        notes.append("the source does not say the optimizer's groups: one group of all trained parameters was written")
    others = [name for name in names if name not in set(trained)]
    saved = set(state.get("buffers", ()))
    buffers = [name for name in others if name in saved or not source.specs[MODEL + name].is_floating]
    steps = int(state.get("step", 0))
    counts = {"global_steps": steps, "skipped_steps": 0}
    counts["global_samples"] = steps * int(config.get("data", {}).get("images_per_batch", 1))
    half = config.get("parallel", {}).get("compute_dtype") == "bfloat16"
    frozen = tuple(name for name in others if name not in set(buffers))
    return Layout(groups, frozen, tuple(buffers), "bfloat16" if half else "float32", counts, notes)


def _check_types(source: TensorSource) -> None:
    """DeepSpeed keeps floats as float32.

    Raises:
        CheckpointError: a float that cannot become one.
    """
    for name, spec in source.specs.items():
        if spec.is_floating and spec.dtype not in CASTABLE:
            raise CheckpointError(
                f"'{name}' has type {spec.dtype}, which DeepSpeed's format has no place for; convert --to dcp"
            )


def _trained(source: TensorSource, names: Sequence[str]) -> list[str]:
    """What has moments; of weights alone, all that could have them."""
    specs = {name: source.specs[MODEL + name] for name in names}
    buffers = (source.state or {}).get("buffers", ())
    filled = [n for n, spec in specs.items() if spec.is_floating and spec.numel and n not in buffers]
    kept = {name.removeprefix(OPTIM) for name in source.specs if name.startswith(OPTIM)}
    moved = [name for name in filled if any(f"{name}.{key}" in kept for key in _KEPT)]
    if strange := sorted(kept - {f"{name}.{key}" for name in moved for key in _KEPT}):
        raise CheckpointError(
            f"'{OPTIM}{strange[0]}' is no state of AdamW ({', '.join(_KEPT)}) of a weight that is there; DeepSpeed's format "
            "is written with that alone"
        )
    if lacking := [f"{name}.{key}" for name in moved for key in _KEPT if f"{name}.{key}" not in kept]:
        raise CheckpointError(f"'{OPTIM}{lacking[0]}' is missing: AdamW's state is {', '.join(_KEPT)} of every weight")
    if moved or not source.state:
        return moved or filled
    named = {name for group in source.state.get("groups", ()) for name in group["names"]}
    return [name for name in filled if name in named] or filled


def _groups(
    saved: Sequence[Mapping[str, Any]], trained: Sequence[str], optim: Mapping[str, Any]
) -> tuple[ParamGroup, ...]:
    known = set(trained)
    groups = [(tuple(name for name in group["names"] if name in known), group) for group in saved]
    if missing := known.difference(*(names for names, _ in groups)):
        raise CheckpointError(
            f"the source's optimizer moves '{min(missing)}' (and {len(missing) - 1} more), which no group in its "
            "state.json names: state and tensors are not of one checkpoint"
        )
    scaled = [
        ParamGroup(names, _options(optim, float(group["lr_scale"]), weight_decay=float(group["weight_decay"])))
        for names, group in groups
    ]
    return tuple(group for group in scaled if group.names)


def _options(optim: Mapping[str, Any], scale: float = 1.0, **own: Any) -> dict[str, Any]:
    given = {key: optim[key] for key in ("lr", "eps", "weight_decay") if key in optim}
    if "betas" in optim:
        given["betas"] = tuple(optim["betas"])
    options = {**_ADAMW, **given, **own, "lr_scale": scale}
    return {**options, "lr": options["lr"] * scale}
