"""Windows of steps that are looked at closely: torch's profiler and CUDA's memory history, into the run's folder.

profile/rank-00000-steps-10-12.json.gz     open in https://ui.perfetto.dev or chrome://tracing
profile/rank-00000-steps-10-12.pickle      open in https://docs.pytorch.org/memory_viz
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mres.errors import UserError, about_os
from mres.io.files import made_aside
from mres.stream.batch import Batch
from mres.supervise.world import World
from mres.train.callback import Callback
from mres.train.config import TrainConfig

_MEMORY_EVENTS = 1_000_000


@dataclass(slots=True)
class _Window:
    """`begin` starts to record on a device and returns what ends that and writes a file, which gets a suffix of its own."""

    first: int
    last: int
    begin: Callable[[torch.device], Callable[[Path], None]]
    end: Callable[[Path], None] | None = None
    opened: int = 0
    reached: int = 0


class ProfileWindows(Callback):
    """Opens and closes the windows; one that a stop cuts off is written as far as it went.

    Args:
        patient: one that the disk does not take is said and does not end the run (`checkpoint.on_failure=continue`).

    Raises:
        UserError: a window behind the run's last step, a rank that does not exist, a memory snapshot without a GPU.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, world: World, last_step: int, *, patient: bool = False
    ) -> None:
        _check(config, world, last_step)
        self._folder, self._world, self._patient = run_dir / "profile", world, patient
        chosen = (config.profile, _profile), (config.memory_snapshot, _memory_history)
        here = world.rank in config.profile_ranks
        self._windows = [_Window(*steps, begin) for steps, begin in chosen if steps is not None and here]

    def before_step(self, step: int) -> None:
        for window in self._windows:
            if window.end is None and window.first <= step <= window.last:
                window.opened, window.end = step, window.begin(self._world.device)

    def after_step(self, step: int, batch: Batch) -> None:
        for window in self._windows:
            window.reached = step
            if step == window.last:
                self._finish(window)

    def close(self) -> None:
        for window in self._windows:
            self._finish(window)

    def _finish(self, window: _Window) -> None:
        if window.end is None:
            return
        end, window.end = window.end, None
        path = self._folder / f"rank-{self._world.rank:05d}-steps-{window.opened}-{window.reached}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            end(path)
        except OSError as error:
            if not self._patient:
                raise
            print(f"warning: '{path}' is not written, the run goes on: {about_os(error)}", file=sys.stderr, flush=True)


def _profile(device: torch.device) -> Callable[[Path], None]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities, record_shapes=True)
    profiler.start()

    def end(path: Path) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else the last kernels are missing
        profiler.stop()
        with made_aside(Path(f"{path}.json.gz")) as part:
            profiler.export_chrome_trace(str(part))

    return end


def _memory_history(device: torch.device) -> Callable[[Path], None]:
    torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)

    def end(path: Path) -> None:
        with made_aside(Path(f"{path}.pickle")) as part:
            torch.cuda.memory._dump_snapshot(str(part))
        torch.cuda.memory._record_memory_history(enabled=None)

    return end


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
