"""Distributed code is tested on real processes: `run_distributed(function, world_size)` over gloo on one machine."""

import multiprocessing
import os
import random
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import Queue
from typing import Any

import torch

# Below those that the kernel gives to connections, which another process may make before this one is bound.
_PORTS = range(10_000, 32_000)


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 300) -> list[Any]:
    """Calls `function(*args)` in `world_size` new processes that have RANK, WORLD_SIZE … set, as a launcher would.

    The function must be importable (defined at a module's top level). Returns the results in the order of ranks;
    the first rank that fails ends the others and raises with its traceback. The processes start quickly where
    `multiprocessing.set_forkserver_preload` has named what they need.
    """
    context = multiprocessing.get_context("forkserver")
    results: Queue[tuple[int, bool, Any]] = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, port, results, args, dict(os.environ)))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        values: dict[int, Any] = {}
        while len(values) < world_size:
            rank, ok, value = results.get(timeout=timeout_s)
            if not ok:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{value}")
            values[rank] = value
        return [values[rank] for rank in range(world_size)]
    finally:
        for process in processes:
            process.join(timeout=20 if len(values) == world_size else 0.1)
            if process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    """A port that nobody listens on now, and hardly anybody will take: drawn, so that tests side by side do not meet."""
    draw = random.SystemRandom()
    while True:
        port = draw.choice(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _rank(
    function: Callable[..., Any],
    rank: int,
    size: int,
    port: int,
    results: Any,
    args: tuple[Any, ...],
    environ: dict[str, str],
) -> None:
    os.environ.clear()  # those of the server that this process was forked from
    os.environ.update(environ)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        results.put((rank, True, function(*args)))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
