"""Bench of checkpoints: how long training waits for one, how long writing and reading take, beside `cp` of the same bytes.

Real processes over gloo on one machine; every figure is that of the slowest rank, from one barrier on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.claim import claim
from mres.checkpoint.config import CheckpointConfig
from mres.checkpoint.saver import Saver
from mres.checkpoint.store import step_folder
from mres.errors import UserError
from mres.model.config import LossConfig
from mres.model.initial import initial_weights
from mres.model.task import SegmentationTask
from mres.model.unires.config import UniresConfig
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, Strategy
from mres.supervise.world import join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import parameter_groups

STRATEGIES: dict[str, dict[str, Any]] = {
    "fsdp": {"strategy": "fsdp"},
    "zero 2": {"strategy": "zero", "zero_stage": 2},
    "zero 3": {"strategy": "zero", "zero_stage": 3},
}
_MIDDLE = {
    "image_size": 112, "vision_width": 512, "vision_depth": 4, "vision_heads": 8, "low_group_tokens": 8,
    "text_width": 384, "text_depth": 3, "text_heads": 6, "text_vocab_size": 8192, "decoder_width": 256,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"size": "tiny"},
    "middle": {"size": "large", **_MIDDLE},  # 29 million parameters: 351 MB of weights and moments
    "base": {"size": "base"},
}
_LABELS = {
    "stall": "training waits for an asynchronous save, s",
    "background": "until it is on the disk, s",
    "synchronous": "a synchronous save, s",
    "load": "loading, s",
    "copy": "cp and fsync of the same files, s",
}


def checkpoint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Saves, both ways, and loads under each strategy in turn; files are written below the temporary folder (TMPDIR).

    Raises:
        UserError: no such model.
    """
    if arguments.size not in MODELS:
        raise UserError(f"--size {arguments.size}: bench checkpoint measures {', '.join(MODELS)}")
    found = {}
    for kind in STRATEGIES:
        with tempfile.TemporaryDirectory(prefix="mres-bench-") as folder:
            found[kind] = run_distributed(measure, arguments.ranks, kind, Path(folder), arguments, timeout_s=3600)[0]
    num_bytes = found["fsdp"]["bytes"]
    return {
        "bench": "checkpoint",
        "what": f"a state of {num_bytes / 1e6:,.0f} MB on {arguments.ranks} ranks: written, flushed, hashed, committed",
        **{label: {kind: seconds[name] for kind, seconds in found.items()} for name, label in _LABELS.items()},
        "MB/s": {
            f"{kind}, {name}": seconds["bytes"] / 1e6 / seconds[name]
            for kind, seconds in found.items()
            for name in ("synchronous", "load", "copy")
        },
        "claims": {
            f"{kind}, stall / synchronous save": claim(seconds["stall"] / seconds["synchronous"], "<=", 0.1)
            for kind, seconds in found.items()
        },
    }


def measure(kind: str, root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of this kind's actions, which take turns, and the bytes of a checkpoint."""
    torch.set_num_threads(arguments.threads)
    strategy = _started(kind, arguments.size)
    savers = {
        is_async: Saver(root, strategy, _config(is_async), lambda step: {"step": step}, "", lambda _: None)
        for is_async in (True, False)
    }
    found: dict[str, list[float]] = {}
    num_bytes = 0
    for number in range(arguments.rounds + 1):
        seconds = _round(strategy, savers[True], savers[False], root, 2 * number)
        num_bytes = sum(path.stat().st_size for path in step_folder(root, 2 * number + 1).iterdir())
        strategy.barrier()
        if strategy.world.is_main:
            shutil.rmtree(root)
        for name, value in seconds.items() if number else ():  # the first allocates, and is not counted
            found.setdefault(name, []).append(max(strategy.all_gather_object(value)))
    leave_world()
    return {name: statistics.median(values) for name, values in found.items()} | {"bytes": float(num_bytes)}


def _config(is_async: bool) -> CheckpointConfig:
    # None is removed, so that a round is one save and nothing else.
    return CheckpointConfig(every=1, keep=1000, async_save=is_async)


def _started(kind: str, size: str) -> Strategy:
    config = ParallelConfig.model_validate(STRATEGIES[kind])
    strategy = build_strategy(config, join_world(config.timeout_s))
    task = SegmentationTask(UniresConfig.model_validate(MODELS[size]), LossConfig())
    model = task.outline()
    weights = initial_weights(model, 0)
    strategy.wrap(model, task.blocks(model), parameter_groups(model, 0.0), AdamW((0.9, 0.999), 1e-8, 1.0))
    strategy.load_weights(weights)
    return strategy


def _round(strategy: Strategy, background: Saver, direct: Saver, root: Path, step: int) -> dict[str, float]:
    """One save of each kind, one load and one copy of what was saved."""

    def timed(action: Callable[[], object]) -> float:
        strategy.barrier()
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    stall = timed(lambda: background.save(step))
    rest = timed(background.wait)
    saved = step_folder(root, step + 1)
    return {
        "stall": stall,
        "background": stall + rest,
        "synchronous": timed(lambda: direct.save(step + 1)),
        "load": timed(lambda: strategy.load_state(saved, optimizer=True)),
        "copy": timed(lambda: _copy(saved, root / "copy", strategy.world.rank)),
    }


def _copy(source: Path, target: Path, rank: int) -> None:
    """Each rank copies the file that it wrote."""
    target.mkdir(exist_ok=True)
    for path in source.glob(f"__{rank}_*.distcp"):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())
