"""Windows of steps that are looked at closely: torch's profiler and CUDA's memory history, into the run's folder.

profile/rank-00000-steps-10-12.json.gz     open in https://ui.perfetto.dev or chrome://tracing
profile/rank-00000-steps-10-12.pickle      open in https://docs.pytorch.org/memory_viz
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from mres.errors import UserError
from mres.stream.batch import Batch
from mres.supervise.world import World
from mres.train.callback import Callback
from mres.train.config import TrainConfig

_MEMORY_EVENTS = 1_000_000


class ProfileWindows(Callback):
    """Opens and closes the windows; one that a stop cuts off is written as far as it went.

    Raises:
        UserError: a window behind the run's last step, a rank that does not exist, a memory snapshot without a GPU.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, world: World, last_step: int) -> None:
        _check(config, world, last_step)
        self._windows: list[_Window] = []
        if world.rank in config.profile_ranks:
            folder = run_dir / "profile"
            if config.profile:
                self._windows.append(_Profile(folder, world, config.profile))
            if config.memory_snapshot:
                self._windows.append(_Memory(folder, world, config.memory_snapshot))

    def before_step(self, step: int) -> None:
        for window in self._windows:
            if not window.is_open and window.first <= step <= window.last:
                window.open(step)

    def after_step(self, step: int, batch: Batch) -> None:
        for window in self._windows:
            if window.is_open:
                window.reached = step
                if step == window.last:
                    window.close()

    def close(self) -> None:
        for window in self._windows:
            if window.is_open:
                window.close()


class _Window(ABC):
    suffix = ""

    def __init__(self, folder: Path, world: World, steps: tuple[int, int]) -> None:
        self._folder, self._world = folder, world
        self.first, self.last = steps
        self.opened = self.reached = 0

    @property
    def is_open(self) -> bool:
        return self.opened > 0

    def open(self, step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._begin()
        self.opened = self.reached = step

    def close(self) -> None:
        name = f"rank-{self._world.rank:05d}-steps-{self.opened}-{self.reached}{self.suffix}"
        self.opened = 0
        self._finish(self._folder / name)

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _finish(self, path: Path) -> None: ...


class _Profile(_Window):
    suffix = ".json.gz"
    _profiler: Any

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.__enter__()

    def _finish(self, path: Path) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)  # else the last kernels are missing
        self._profiler.__exit__(None, None, None)
        self._profiler.export_chrome_trace(str(path))


class _Memory(_Window):
    suffix = ".pickle"

    def _begin(self) -> None:
        torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)

    def _finish(self, path: Path) -> None:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)


def _check(config: TrainConfig, world: World, last_step: int) -> None:
    for key, window in (("profile", config.profile), ("memory_snapshot", config.memory_snapshot)):
        if window is not None and window[1] > last_step:
            raise UserError(
                f"train.{key}={list(window)} goes beyond the run's last step {last_step}; name earlier steps"
            )
    missing = [rank for rank in config.profile_ranks if rank >= world.size]
    if missing:
        raise UserError(f"train.profile_ranks names rank {missing[0]}, and the ranks are 0 to {world.size - 1}")
    if config.memory_snapshot is not None and world.device.type != "cuda":
        raise UserError("train.memory_snapshot records the memory of a GPU, and there is none here; remove it")
