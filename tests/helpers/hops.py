"""Worlds of several sizes, one after another, forked off one process that has its imports behind it.

`run_distributed(function, 1)` starts that process; DeepSpeed alone takes seconds to import, in every rank anew.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

from mres.testing import free_port


def preload(*modules: str) -> None:
    """Imports them, DeepSpeed too, here and so in all worlds to come; nothing may have started a thread before."""
    from mres.parallel.zero.strategy import _import_deepspeed

    _import_deepspeed("cpu", 0)
    for name in ("torch._dynamo", "torch.distributed.fsdp", "deepspeed.runtime.zero.muon.muon_optimizer", *modules):
        importlib.import_module(name)


def world_of(size: int) -> list[dict[str, str]]:
    """The environment of each rank, as a launcher would give it."""
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in range(size)]
    return [{name: str(value) for name, value in rank.items()} for rank in ranks]


def hop(size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 600) -> list[int]:
    """Calls `function(*args)` in `size` forked ranks; returns their exit codes."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(environ, function, args)) for environ in world_of(size)]
    for process in ranks:
        process.start()
    _wait(ranks, timeout_s)
    return [process.exitcode or 0 for process in ranks]


def _wait(processes: Sequence[Any], timeout_s: float) -> None:
    try:
        for process in processes:
            process.join(timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(environ: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environ)
    function(*args)
