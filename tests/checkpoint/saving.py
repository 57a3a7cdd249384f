"""Real saves in real processes: forked from a server that has imported torch once, so that a process starts at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tiny_run import PRELOAD

from mres.testing import free_port

CONTEXT = multiprocessing.get_context("forkserver")
# DDP and DCP would import the last two at their first use, in every process anew.
CONTEXT.set_forkserver_preload([*PRELOAD, "torch._dynamo", "torch.distributed.checkpoint._fsspec_filesystem"])
CONFIG_YAML = "model: {size: tiny}\n"
# What changes the disk, or opens what will be written or waited for, as Python's audit hooks name it.
_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function` in a process of its own, or its exception."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(function, *args).result()


def on_ranks(function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    """`in_process` for ranks that meet."""
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=CONTEXT) as pool:
        return [future.result() for future in [pool.submit(_rank, function, r, size, port, *args) for r in range(size)]]


def _rank(function: Callable[..., Any], rank: int, size: int, port: int, *args: Any) -> Any:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return function(*args)


def save_all(root: Path, steps: list[int], *, width: int = 32, **options: Any) -> list[Path]:
    """Saves a state whose tensors all equal the step; `options` of the checkpoint section."""
    list(saves(root, steps, width=width, **options))
    return [root / f"step-{step:08d}" for step in steps]


def saves(root: Path, steps: list[int], *, width: int = 32, **options: Any) -> Iterator[Any]:
    """One save after another, as far as the caller goes; gives the saver after each."""
    from mres.checkpoint.config import CheckpointConfig
    from mres.checkpoint.saver import Saver

    strategy = small_strategy(width)
    saver = Saver(root, strategy, CheckpointConfig(every=1, **options), state_of, CONFIG_YAML, lambda text: None)
    for step in steps:
        fill(strategy, step)
        saver.save(step)
        saver.settle()
        yield saver


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "model": {}}


def small_strategy(width: int = 32) -> Any:
    """A linear layer under DDP, with moments."""
    from torch import nn

    from mres.parallel.config import ParallelConfig
    from mres.parallel.strategy import AdamW, ParameterGroup, build_strategy
    from mres.parallel.world import join_world

    config = ParallelConfig(strategy="ddp")
    strategy = build_strategy(config, join_world(config))
    model = nn.Linear(width, width)
    names = tuple(name for name, _ in model.named_parameters())
    strategy.wrap(model, [], [ParameterGroup(names, 0.0)], AdamW((0.9, 0.999), 1e-8, 1.0))
    return strategy


def fill(strategy: Any, value: float) -> None:
    """Every tensor that a checkpoint has of this rank."""
    from mres.parallel.pieces import local_tensors

    for _, tensor in local_tensors(strategy.pieces()):
        tensor.fill_(value)


def save_until_killed(root: Path, log: Path, steps: list[int], kill_at: int | None, options: dict[str, Any]) -> None:
    """Saves on and on, noting each finished step in `log`; ends itself with SIGKILL before operation `kill_at`."""
    done = saves(root, steps, **options)
    next(done)  # starts everything up
    _note(log, steps[0])
    _kill_at(kill_at)
    for step, _ in zip(steps[1:], done, strict=False):
        _note(log, step)


def killed_at(kill_at: int, function: Callable[..., Any], *args: Any) -> None:
    """Calls `function`, and SIGKILL comes before its operation `kill_at` on the disk."""
    _kill_at(kill_at)
    function(*args)


def _kill_at(number: int | None) -> None:
    count = _Operations()

    def kill() -> None:
        if count.seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    count.watch(kill)


class _Operations:
    """Counts what this process does to the disk, in all of its threads."""

    def __init__(self) -> None:
        self.seen = 0

    def watch(self, then: Callable[[], None] = lambda: None) -> None:
        def count() -> None:
            self.seen += 1
            then()

        def audit(event: str, _: Any) -> None:
            if event in _OPERATIONS:
                count()

        fsync = os.fsync

        def counted(descriptor: int) -> None:
            count()
            fsync(descriptor)

        os.fsync = counted
        sys.addaudithook(audit)


def operations_of_a_save(root: Path, options: dict[str, Any]) -> int:
    """How many times a save that also removes a checkpoint changes the disk."""
    done = saves(root, [1, 2, 3], **options)
    next(done), next(done)
    count = _Operations()
    count.watch()
    next(done)
    return count.seen


def _note(log: Path, step: int) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{step}\n".encode())
    os.close(descriptor)


def save_on_full_disk(root: Path) -> str:
    """A save that fits, then one that does not; returns what the user is told."""
    from mres.errors import UserError

    save_all(root, [1])
    try:
        save_all(root, [2], width=1024)
    except UserError as error:
        return str(error)
    return "it fitted"


def limit_file_size(num_bytes: int, function: Callable[..., Any], *args: Any) -> Any:
    """Where no small disk can be mounted: no file of this process may grow beyond `num_bytes`."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    return function(*args)
