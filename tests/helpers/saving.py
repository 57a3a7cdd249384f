"""Real saves in real processes: forked from a server that has imported torch once, so that a process starts at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mres.testing import free_port

CONTEXT = multiprocessing.get_context("forkserver")
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
        return [
            future.result() for future in [pool.submit(rank_of, function, r, size, port, *args) for r in range(size)]
        ]


def rank_of(function: Callable[..., Any], rank: int, size: int, port: int, *args: Any) -> Any:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return function(*args)


def save_all(root: Path, steps: list[int], **options: Any) -> list[Path]:
    """Saves a state whose tensors all equal the step."""
    list(saves(root, steps, **options))
    return [root / f"step-{step:08d}" for step in steps]


def saves(
    root: Path, steps: list[int], *, resumed: int | None = None, say: Callable[[str], None] = str, **options: Any
) -> Iterator[Any]:
    """One save after another, as far as the caller goes; gives the saver after each."""
    width = options.pop("width", 32)
    strategy = small_strategy(width)
    saver = _saver(root, strategy, options, say)
    if resumed is not None:
        saver.resumed(root / f"step-{resumed:08d}", resumed)
    for step in steps:
        fill(strategy, step)
        saver.save(step)
        saver.wait()
        yield saver


def in_flight(root: Path, steps: list[int], options: dict[str, Any], say: Callable[[str], None] = str) -> Iterator[Any]:
    """The saver and the step once training goes on after a save, which has made all tensors others."""
    strategy = small_strategy()
    saver = _saver(root, strategy, options, say)
    for step in steps:
        fill(strategy, step)
        saver.save(step)
        fill(strategy, -step)
        yield saver, step


def _saver(root: Path, strategy: Any, options: dict[str, Any], say: Callable[[str], None]) -> Any:
    from mres.checkpoint.config import CheckpointConfig
    from mres.checkpoint.saver import Saver

    return Saver(root, strategy, CheckpointConfig(every=1, **options), state_of, CONFIG_YAML, say)


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "model": {}}


def small_strategy(width: int = 32) -> Any:
    """A linear layer under DDP, with moments."""
    from torch import nn

    from mres.parallel.config import ParallelConfig
    from mres.parallel.factory import build_strategy
    from mres.parallel.strategy import AdamW, ParameterGroup
    from mres.supervise.world import join_world

    config = ParallelConfig(strategy="ddp")
    strategy = build_strategy(config, join_world(config.timeout_s))
    model = nn.Linear(width, width)
    names = tuple(name for name, _ in model.named_parameters())
    strategy.wrap(model, [], [ParameterGroup(names, 0.0)], AdamW((0.9, 0.999), 1e-8, 1.0))
    return strategy


def fill(strategy: Any, value: float) -> None:
    """Every tensor that a checkpoint has of this rank."""
    from mres.dcp.local_shards import local_tensors

    for _, tensor in local_tensors(strategy.local_shards()):
        tensor.fill_(value)


def save_until_killed(root: Path, log: Path, steps: list[int], kill_at: int | None, options: dict[str, Any]) -> None:
    """Saves on and on, training between saves, and notes each finished step in `log`; SIGKILL comes before operation
    `kill_at`."""
    count = _Operations()
    for number, (saver, step) in enumerate(in_flight(root, steps, options)):
        if number:
            _note(log, steps[number - 1])
        else:  # the first has started everything up
            saver.wait()
            _note(log, step)
            count.watch(lambda: _kill_at(count.seen, kill_at))
    saver.wait()
    _note(log, step)


def killed_at(number: int, function: Callable[..., Any], *args: Any) -> None:
    """Calls `function`, and SIGKILL comes before its operation `number` on the disk."""
    count = _Operations()
    count.watch(lambda: _kill_at(count.seen, number))
    function(*args)


def _kill_at(seen: int, number: int | None) -> None:
    if seen == number:
        os.kill(os.getpid(), signal.SIGKILL)


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
    """How many times a save that also reads one back and removes one changes the disk."""
    done = saves(root, [1, 2, 3], **options)
    next(done), next(done)
    count = _Operations()
    count.watch()
    next(done)
    return count.seen


def tensors(folder: Path) -> dict[str, Any]:
    """Everything that a checkpoint holds."""
    import torch
    import torch.distributed.checkpoint as dcp

    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size) for name, entry in stored.items()}
    with warnings.catch_warnings(action="ignore"):  # it is meant to be read by one process
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def _note(log: Path, step: int) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{step}\n".encode())
    os.close(descriptor)


def save_on_full_disk(root: Path, width: int = 1024) -> str:
    """A save that fits, then one that does not; returns what the user is told."""
    from mres.errors import UserError

    save_all(root, [1])
    try:
        save_all(root, [2], width=width)
    except UserError as error:
        return str(error)
    return "it fitted"


def limit_file_size(num_bytes: int, function: Callable[..., Any], *args: Any) -> Any:
    """Where no small disk can be mounted: no file of this process may grow beyond `num_bytes`."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    return function(*args)
