"""DeepSpeed's own ZeRO checkpoints (stages 1, 2 and 3, any number of ranks), read tensor by tensor without DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mres.formats.deepspeed_files import Files, open_extra, open_files, tag_folder
from mres.formats.deepspeed_flat import MASTER, Flat, Flats, Plan, Whole, groups_of, trained_plans
from mres.formats.deepspeed_layout import MOMENTS, Layout
from mres.formats.folder import CONFIG, STATE, CheckpointError, saved_config
from mres.formats.memory import Buffer
from mres.formats.state_file import read_state
from mres.formats.stored import Chain, Stored
from mres.formats.tensors import MODEL, OPTIM, Spec, TensorSource
from mres.formats.torch_pickle import StoredTensor
from mres.io.json_files import JsonError, read_json


def is_deepspeed(folder: Path) -> bool:
    """Whether it is what `engine.save_checkpoint` makes, or one tag's folder in it.

    Raises:
        CheckpointError: its file "latest" names what is not there.
    """
    return tag_folder(folder) is not None


def open_deepspeed(folder: Path) -> DeepSpeedSource:
    """Opens all files and checks that they fit together; tensors are read, and their CRC checked, as they are asked for.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or they do not fit together.
    """
    found = tag_folder(folder)
    if found is None:
        raise CheckpointError(f"{folder} is no DeepSpeed checkpoint: no file 'latest', no …_optim_states.pt")
    try:
        return DeepSpeedSource(open_files(found))
    # Torch's values, but not in DeepSpeed's places.
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{found} is not as DeepSpeed writes it: {type(error).__name__} {error}") from None


class DeepSpeedSource(TensorSource):
    """Floats come as float32, and `layout` says what else a folder of ZeRO knows of its tensors."""

    def __init__(self, files: Files) -> None:
        model = files.model[0].structure
        shared: Mapping[str, str] = model.get("shared_params") or {}
        flats = Flats(files)
        trained = trained_plans(files, flats)
        self.state, self.config_yaml = _beside(files.folder)
        buffers = (self.state or {}).get("buffers", ())  # in their own types; what DeepSpeed saved, it has rounded
        others = {
            name: Whole(Stored(files.model[0], tensor), widen=False) if name in buffers else _other(files, name, tensor)
            for name, tensor in model["module"].items()
            if name not in trained and name not in shared
        }
        self._plans: dict[str, Plan] = {}
        self._buffer = Buffer()
        for name in [*model["module"], *(name for name in trained if name not in model["module"])]:
            for key, plan in trained.get(name, {}).items():
                self._plans[MODEL + name if key == MASTER else f"{OPTIM}{name}.{key}"] = plan
            if name in others:
                self._plans[MODEL + name] = others[name]
        self._plans |= _extra(files.folder)
        self._steps = _steps(files, flats) if MOMENTS[0] in flats.keys else {}
        self.specs = _specs(self._plans, self._steps)
        self.aliases = {MODEL + alias: MODEL + name for alias, name in shared.items()}
        self.layout = _layout(files, list(others))
        if flats.left_behind:
            self.notes = [
                f"the optimizer's {', '.join(flats.left_behind)} stay behind: of its state, AdamW's {', '.join(MOMENTS)} "
                "and step are read"
            ]

    def read_into(self, name: str, target: memoryview) -> None:
        if name in self._steps:
            target[:] = np.float32(self._steps[name]).tobytes()
        else:
            self._plans[name].read_into(target, self._buffer)


def _specs(plans: Mapping[str, Plan], steps: Mapping[str, float]) -> dict[str, Spec]:
    """A parameter's step count stands behind its moments."""
    specs = {}
    for name, plan in plans.items():
        specs[name] = plan.spec
        step = name.removesuffix(MOMENTS[-1]) + "step"
        if name.startswith(OPTIM) and step in steps:
            specs[step] = Spec((), "float32")
    return specs


def _steps(files: Files, flats: Flats) -> dict[str, float]:
    """Of every trained parameter; a flat tensor has one count. Stage 3 may have several flat tensors a group."""
    shapes = files.model[0].structure["param_shapes"]
    counts = [flats.step(flat) for flat in range(flats.num)]
    if len(shapes) != len(counts) and len(set(counts)) > 1:
        raise CheckpointError(f"{files.folder} counts steps for {len(counts)} flat tensors of {len(shapes)} groups")
    by_group = counts if len(shapes) == len(counts) else counts[:1] * len(shapes)
    return {f"{OPTIM}{name}.step": count for named, count in zip(shapes, by_group, strict=True) for name in named}


def _other(files: Files, name: str, tensor: StoredTensor) -> Plan:
    """A frozen parameter or a buffer; stage 3 keeps a piece of each frozen parameter a rank."""
    shapes = files.model[0].structure.get("frozen_param_shapes") or {}
    if name not in shapes:
        if files.stage == 3 and name not in (files.model[0].structure.get("buffer_names") or ()):
            raise CheckpointError(f"{files.folder} was saved without the frozen parameter '{name}'; save it with it")
        return Whole(Stored(files.model[0], tensor))
    fragments = [file.structure["frozen_param_fragments"][name] for file in files.model]
    if files.stage != 3:
        return Whole(Stored(files.model[0], fragments[0]))
    chain = Chain([Stored(file, piece) for file, piece in zip(files.model, fragments, strict=True)])
    numel = math.prod(shapes[name])
    if chain.numel < numel:
        raise CheckpointError(f"{files.folder} has {chain.numel} elements of '{name}', whose shape is {shapes[name]}")
    return Flat(shapes[name], chain.dtype, [(chain, 0, numel)])


def _extra(folder: Path) -> dict[str, Plan]:
    """What mres wrote beside DeepSpeed's files: moving averages of the weights."""
    file = open_extra(folder)
    if file is None:
        return {}
    return {name: Whole(Stored(file, tensor)) for name, tensor in file.structure["tensors"].items()}


def _layout(files: Files, others: list[str]) -> Layout:
    model = files.model[0].structure
    buffers = set(model.get("buffer_names") or ())
    return Layout(
        groups=groups_of(files),
        frozen=tuple(name for name in others if name not in buffers),
        buffers=tuple(name for name in others if name in buffers),
        compute="bfloat16" if files.half else "float32",
        counts={key: int(model.get(key) or 0) for key in ("global_steps", "skipped_steps", "global_samples")},
    )


def _beside(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A run's state.json and config.yaml, where mres wrote the folder; files of others may have these names."""
    state, config = folder.parent / STATE, folder.parent / CONFIG
    if not (state.is_file() and config.is_file()):
        return None, None
    try:
        found = read_json(state)
    except JsonError as error:
        raise CheckpointError(f"{state} is damaged: {error}") from None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not isinstance(found.get("model"), dict):
        return None, None
    return read_state(state), saved_config(config)
