"""Bench of memory: what each rank holds while a model gets its weights and makes its first step, against the whole model.

Real processes over gloo on one machine. Counted is a process's peak resident memory above what it had when everything was
imported and a small model of the same strategy had made a step.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import torch

from benchmarks.claim import claim
from mres.errors import UserError
from mres.model.config import LossConfig
from mres.model.initial import initial_weights
from mres.model.task import SegmentationTask
from mres.model.unires.config import UniresConfig
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, Strategy
from mres.supervise.world import World, join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import parameter_groups

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "zero 3": {"strategy": "zero", "zero_stage": 3},
}
_SMALLER = {
    "image_size": 112, "vision_width": 512, "vision_depth": 8, "vision_heads": 8, "low_group_tokens": 8,
    "text_width": 384, "text_depth": 6, "text_heads": 6, "text_vocab_size": 8192, "decoder_width": 256,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    # `large` in all but its sizes, so that four whole copies with gradients and moments fit a small machine.
    "smaller": {"size": "large", **_SMALLER},
    # As it is, with images of a quarter: measured are weights, and activations (3 GB otherwise) would hide them. Only the
    # sharded strategies fit then.
    "large": {"size": "large", "image_size": 224},
}
_M_MMAP_THRESHOLD = -3  # malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts `ranks` processes for each strategy in turn.

    Raises:
        UserError: this is no Linux, or no such model.
    """
    if arguments.size not in MODELS:
        raise UserError(f"--size {arguments.size}: bench peak measures {' or '.join(MODELS)}")
    if not _CLEAR.exists():
        raise UserError(f"bench peak reads and resets a process's peak memory in {_CLEAR.parent}, which only Linux has")
    model = UniresConfig.model_validate(MODELS[arguments.size])
    whole = whole_mb(model)
    kinds = [kind for kind in STRATEGIES if arguments.size != "large" or kind != "ddp"]
    found = {kind: run_distributed(rank_peaks, arguments.ranks, kind, model, timeout_s=1800) for kind in kinds}
    worst = {
        moment: {kind: max(rank[moment] for rank in ranks) for kind, ranks in found.items()}
        for moment in ("start", "step")
    }
    return {
        "bench": "peak",
        "what": f"a model ({arguments.size}) of {whole:,.0f} MB on {arguments.ranks} ranks; MB of the rank that holds most",
        "the whole model, float32": {"weights": whole, "weights, gradients and moments": 4 * whole},
        "peak until the weights are there (zero 3: gradients and moments too)": worst["start"],
        "peak until the first step is made": worst["step"],
        "claims": {
            "fsdp, start / weights": claim(worst["start"]["fsdp"] / whole, "<=", 1),
            "zero 3, start / weights, gradients, moments": claim(worst["start"]["zero 3"] / (4 * whole), "<=", 1),
            "fsdp, step / weights, gradients, moments": claim(worst["step"]["fsdp"] / (4 * whole), "<=", 1),
            "zero 3, step / weights, gradients, moments": claim(worst["step"]["zero 3"] / (4 * whole), "<=", 1),
        },
    }


def whole_mb(config: UniresConfig) -> float:
    """The weights of the whole model."""
    model = SegmentationTask(config, LossConfig()).outline()
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6


def rank_peaks(kind: str, model: UniresConfig) -> dict[str, float]:
    """MB of this rank's peak, above its start, until the weights are there and until a step is made."""
    _return_what_is_freed()
    config = ParallelConfig.model_validate(STRATEGIES[kind])
    world = join_world(config.timeout_s)
    small = UniresConfig.model_validate(
        {"size": "large", **_SMALLER, "vision_width": 64, "text_width": 96, "decoder_width": 64}
    )
    _step(_started(config, world, small), small)
    before = _status_mb("VmRSS")
    _CLEAR.write_text("5", encoding="ascii")  # the peak counts from here
    strategy = _started(config, world, model)
    start = _status_mb("VmHWM") - before
    _step(strategy, model)
    step = _status_mb("VmHWM") - before
    leave_world()
    return {"start": start, "step": step}


def _return_what_is_freed() -> None:
    """Else glibc keeps freed tensors for later: the figures would be of its heap, not of what is held."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)


def _started(config: ParallelConfig, world: World, model_config: UniresConfig) -> Strategy:
    """As a session does it."""
    task = SegmentationTask(model_config, LossConfig())
    model = task.outline()
    weights = initial_weights(model, 0)
    strategy = build_strategy(config, world)
    strategy.wrap(model, task.blocks(model), parameter_groups(model, 0.0), AdamW((0.9, 0.999), 1e-8, 1.0))
    strategy.load_weights(weights)
    assert not strategy.not_finite()
    return strategy


def _step(strategy: Strategy, config: UniresConfig) -> None:
    """Of one image and one expression, so that activations are small."""
    image_BCSS = torch.zeros(1, 3, config.image_size, config.image_size)
    text_BKT = torch.arange(config.text_length, dtype=torch.int32)[None, None]
    with strategy.micro_batch(last=True):
        strategy.backward(strategy.module(image_BCSS, text_BKT).float().square().mean())
    strategy.step(1e-4)


def _status_mb(name: str) -> float:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6
