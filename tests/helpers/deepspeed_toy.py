"""A small model with all that is awkward in a checkpoint, trained by a real DeepSpeed engine; runs in `run_distributed`."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = {0.1: ("first.weight", "head.weight", "tiny"), 0.0: ("first.bias", "head.bias", "scale")}
STEPS = 3


class Toy(nn.Module):
    """Odd sizes, a weight of two names, a frozen layer, buffers, a parameter of one element and perhaps one of none."""

    def __init__(self, *, nothing: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(7, 13)
        self.frozen = nn.Linear(13, 13)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(13, affine=False)
        self.head = nn.Linear(13, 7)
        self.again = nn.Linear(13, 7, bias=False)
        self.again.weight = self.head.weight
        self.tiny = nn.Parameter(torch.randn(1))
        self.scale = nn.Parameter(torch.randn(3, 5))
        if nothing:
            self.nothing = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.frozen(self.first(x)).relu())
        return self.head(x) + self.again(x) * self.tiny + self.scale.mean()


@dataclass(frozen=True)
class Kind:
    """How an engine is set up."""

    stage: int
    half: bool
    nothing: bool = False  # stage 3 cannot gather a parameter without elements, if there are several ranks
    sub_group_size: int = 10**9

    def __str__(self) -> str:
        return f"zero{self.stage}-{'bf16' if self.half else 'f32'}"


def engine_of(kind: Kind) -> Any:
    import torch.distributed as dist

    from mres.parallel.zero.strategy import _import_deepspeed

    deepspeed = _import_deepspeed("cpu", 0)
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    model = Toy(nothing=kind.nothing)
    named = dict(model.named_parameters())
    groups = [{"params": [named[name] for name in names], "weight_decay": decay} for decay, names in GROUPS.items()]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": kind.half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": kind.stage,
            "stage3_param_persistence_threshold": 20,
            "sub_group_size": kind.sub_group_size,
        },
    }
    with contextlib.redirect_stdout(io.StringIO()):  # figures of memory
        return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=settings)[0]


def step(engine: Any, number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(8, 7, generator=draw).to(engine.module.norm.running_mean.dtype)
    engine.backward(engine(x.to(torch.bfloat16 if engine.bfloat16_enabled() else x.dtype)).float().square().mean())
    engine.step()


def state_of(engine: Any) -> dict[str, Tensor]:
    """Whole masters and moments by DeepSpeed's own getters."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if hasattr(
        engine.optimizer, "_hp_optimizer_states_linked"
    ):  # after the first step it had linked the first group only
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    state = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad or not getattr(parameter, "ds_numel", parameter.numel()):
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        state[f"model.{name}"] = safe_get_full_fp32_param(parameter).clone().view(shape)
        for key in ("exp_avg", "exp_avg_sq"):
            state[f"optim.{name}.{key}"] = safe_get_full_optimizer_state(parameter, key).clone().view(shape)
    return state


def save_all(root: Path, kinds: list[Kind]) -> None:
    """Trains and saves one engine after another into `root`/<kind>; what it held, and held a step later, beside it."""
    for kind in kinds:
        engine = engine_of(kind)
        for number in range(STEPS):
            step(engine, number)
        held = state_of(engine)
        engine.save_checkpoint(str(root / str(kind)))
        step(engine, STEPS)
        _note(engine, root / f"{kind}.held", held, root / str(kind))
        engine.destroy()


def load_all(cases: list[tuple[Path, Kind]]) -> None:
    """Loads one folder after another into a new engine; what it holds then, and a step later, beside it."""
    for folder, kind in cases:
        engine = engine_of(kind)
        with contextlib.redirect_stdout(io.StringIO()):
            path, client = engine.load_checkpoint(str(folder))
        assert path is not None
        assert engine.global_steps == STEPS, client
        held = state_of(engine)
        step(engine, STEPS)
        _note(engine, Path(f"{folder}.held"), held, folder)
        engine.destroy()


def _note(engine: Any, path: Path, held: dict[str, Tensor], folder: Path) -> None:
    after = state_of(engine)
    if engine.global_rank == 0:
        torch.save({"held": held, "after": after, "weights": _by_deepspeed(folder)}, path)


def _by_deepspeed(folder: Path) -> dict[str, Tensor] | str:
    """What DeepSpeed's own conversion makes of a folder, or why it does not."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder)))
    except ValueError as error:
        return str(error)
