"""Commands in forked processes, killed (kill -9) at a moment, or before an operation on the disk below a folder."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.testing import free_port

ROOT = Path(__file__).parents[2]
# What a command, and the ranks that are left, are given to end.
PATIENCE_S = 300.0
_PRELOAD = [
    "torch._dynamo", "torch.distributed.checkpoint._fsspec_filesystem", "torch.distributed.fsdp",
    "torch.utils.tensorboard", "mres.evaluate.evaluator", "mres.evaluate.run", "mres.train.session", "mres.export.folder",
]  # fmt: skip
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
_CONTEXT = multiprocessing.get_context("forkserver")


def preload() -> None:
    """Once, before the first command: its imports take longer than what it does."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    multiprocessing.set_forkserver_preload([*_PRELOAD, "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"])


@dataclass(frozen=True)
class Command:
    """A script of this project with its arguments; operations on the disk below `watched` are counted."""

    words: tuple[str, ...]
    watched: Path
    ranks: int = 1


@dataclass(frozen=True)
class Ended:
    """Exit codes, operations and outputs by rank; `seconds` of all together."""

    codes: list[int | None]
    operations: list[int]
    seconds: float
    outputs: list[str]

    @property
    def was_killed(self) -> bool:
        return -signal.SIGKILL in self.codes


def run(command: Command, folder: Path) -> Ended:
    """Undisturbed."""
    return _Running(command, folder, {}).end()


def kill_at(command: Command, folder: Path, rank: int, operation: int) -> Ended:
    """A rank is killed before that operation of its own, counted from 1; the others end by themselves."""
    return _Running(command, folder, {rank: operation}).end()


def kill_after(command: Command, folder: Path, ranks: Sequence[int], seconds: float) -> Ended:
    """Ranks, with what they have forked, are killed at a moment; the others end by themselves."""
    running = _Running(command, folder, {})
    time.sleep(seconds)
    running.kill(ranks)
    return running.end()


class _Running:
    def __init__(self, command: Command, folder: Path, limits: dict[int, int]) -> None:
        self._counts: list[Any] = [_CONTEXT.Value("q", 0) for _ in range(command.ranks)]
        self._outputs = [folder / f"out-{rank}.txt" for rank in range(command.ranks)]
        self._started = time.monotonic()
        port = free_port()
        self._processes = [
            _CONTEXT.Process(
                target=_become,
                args=(command, rank, port, self._outputs[rank], self._counts[rank], limits.get(rank, 0)),
            )
            for rank in range(command.ranks)
        ]
        for process in self._processes:
            process.start()

    def kill(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            pid = self._processes[rank].pid
            assert pid is not None
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> Ended:
        codes: list[int | None] = []
        for process in self._processes:
            process.join(PATIENCE_S)
            codes.append(process.exitcode)
        self.kill([rank for rank, code in enumerate(codes) if code is None])
        said = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self._outputs]
        return Ended(codes, [count.value for count in self._counts], time.monotonic() - self._started, said)


def _become(command: Command, rank: int, port: int, output: Path, count: Any, limit: int) -> None:
    """Makes this forked process the command."""
    multiprocessing.set_start_method(None, force=True)  # not the server's: Python's own
    os.chdir(ROOT)
    if command.ranks > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": command.ranks, "LOCAL_WORLD_SIZE": command.ranks}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["OMP_NUM_THREADS"] = "1"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8") for number in (1, 2))
    below, forked_from = str(command.watched), os.getpid()

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)) and event not in _CHANGES:
            return
        if os.getpid() != forked_from or not str(args[0]).startswith(below):
            return
        count.value += 1
        if count.value == limit:
            os.kill(forked_from, signal.SIGKILL)

    sys.addaudithook(audit)
    sys.argv = [str(ROOT / command.words[0]), *command.words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
